package stack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/docs"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

// Runs the commands of README.md and docs/ that need AWS as they are written, on a
// stack of the name that they use.
func TestTheDocumentedCommandsWork(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	blocks, err := docs.Commands()
	if err != nil {
		t.Fatal(err)
	}
	const name = "purge-tokens-prod"
	c.create(t, name, c.prepare(t), map[string]string{"SecretArn": required["SecretArn"]})
	c.add(name, fakeFunction{answers: []answer{failure("InvalidEvent"), complete(0)}})
	// All blocks are one script, because a block uses what another one set. The
	// block that removes the stack comes last.
	//
	// The CLI sends to the host in a queue's URL, unless it is given an endpoint.
	script, last := "set -euo pipefail\naws() { command aws \"$@\" --endpoint-url \"$AWS_ENDPOINT_URL\"; }\n", ""
	ran := 0
	for _, b := range blocks {
		if b.Kind() != docs.Cloud || b.DeployStep() {
			continue // the steps are run below, by a stack that they make
		}
		ran++
		b.Text = strings.NewReplacer("<function-arn>", "arn:aws:lambda:us-east-1:123456789012:function:"+name, " result.json", " "+t.TempDir()+"/result.json").Replace(b.Text)
		if text := "echo '# " + b.Page + "'\n" + b.Text; strings.Contains(b.Text, "delete-stack") {
			last += text
		} else {
			script += text
		}
	}
	if ran < 4 || last == "" {
		t.Fatalf("%d blocks of commands", ran)
	}
	command := exec.Command("bash", "-c", script+last)
	command.Dir = root
	command.Env = append(c.env(), "YES=1", "MAKEFLAGS=--no-print-directory")
	out, err := command.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	same(t, "asked", c.asked(name), `["{\"action\": \"fail\"}\n", "{\"action\": \"check\"}\n"]`)
}

// The way of docs/deploy.md from nothing to a purge that is on, each command as it is
// printed: the login on a real PostgreSQL, the stacks on imitations of AWS with the
// real SAM CLI. Of SQL Server's client there is an imitation too.
func TestTheStepsOfDeployAreFollowedToTheLetter(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"psql", "setsid", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	const name = "purge-tokens-prod"
	c := newSecondCloud(t)
	c.playFunctions(t)
	c.add(name, fakeFunction{answers: []answer{complete(0)}})
	k := c.checkout(t)
	if err := os.Remove(filepath.Join(k.dir, "samconfig.toml")); err != nil {
		t.Fatal(err)
	}

	server, err := pgserver.Start(t.Context(), pgserver.Options{Own: true, Settings: map[string]string{"fsync": "off", "log_statement": "all"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	for _, database := range []string{"EdFi_Admin_1", "EdFi_Admin_Template", "payroll"} {
		if err := edfi.CreateDatabase(t.Context(), server.URL("postgres"), database); err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), server.URL(database))
		if err == nil {
			err = errors.Join(edfi.CreateSchema(t.Context(), conn), conn.Close(t.Context()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	programs := t.TempDir()
	const sqlcmd = `#!/bin/sh
case "$*" in *sys.databases*) printf 'EdFi_Admin_1\nEdFi_Admin_Template\n'; exit ;; esac
[ -n "$PURGE_PASSWORD" ] && echo "$*" >>"$0.log"
`
	if err := os.WriteFile(filepath.Join(programs, "sqlcmd"), []byte(sqlcmd), 0o700); err != nil {
		t.Fatal(err)
	}

	blocks, err := docs.Commands()
	if err != nil {
		t.Fatal(err)
	}
	// The network goes to the imitation that has security groups, with its ids.
	second := newCloud(t)
	vpc := second.aws(t, "ec2", "create-vpc", "--cidr-block", "10.0.0.0/16")["Vpc"].(object)["VpcId"].(string)
	values := []string{"<vpc>", vpc, "<vpc-range>", "10.0.0.0/16"}
	values = append(values, "<database-security-group>", second.aws(t, "ec2", "create-security-group", "--group-name", "database",
		"--description", "database", "--vpc-id", vpc)["GroupId"].(string))
	for i := range 2 {
		subnet := second.aws(t, "ec2", "create-subnet", "--vpc-id", vpc, "--cidr-block", fmt.Sprintf("10.0.%d.0/24", i))["Subnet"].(object)["SubnetId"].(string)
		values = append(values, fmt.Sprintf("<subnet-%d>", i+1), subnet)
	}
	script := "set -euo pipefail\naws() { case \"$*\" in *purge-tokens-network*) command aws \"$@\" --endpoint-url \"$SECOND_URL\" ;; *) command aws \"$@\" ;; esac; }\n"
	for _, b := range blocks {
		if b.DeployStep() {
			script += strings.NewReplacer(values...).Replace(b.Text)
		}
	}
	command := exec.Command("bash", "-c", script)
	command.Dir = k.dir
	command.Env = append(c.env(), "YES=1", "MAKEFLAGS=--no-print-directory", "SAM_CLI_TELEMETRY=0", "GOFLAGS=-buildvcs=false", "SECOND_URL="+second.url,
		"PGHOST="+server.Host, fmt.Sprintf("PGPORT=%d", server.Port), "PGUSER="+server.User, "PGPASSWORD="+server.Password, "PGSSLMODE=disable")
	command.Env[0] = "PATH=" + programs + ":" + c.path()
	out, err := command.CombinedOutput()
	t.Logf("%s\n%s", script, out)
	if err != nil {
		t.Fatal(err)
	}

	// The login is the secret's, may purge what it should, and no log has its password.
	var login struct{ Username, Password string }
	secret := c.aws(t, "secretsmanager", "get-secret-value", "--secret-id", "edfi-token-purge-prod")["SecretString"].(string)
	if err := json.Unmarshal([]byte(secret), &login); err != nil || login.Username != "edfi_token_purge" || len(login.Password) < 30 {
		t.Fatalf("the secret has %d characters, %v", len(secret), err)
	}
	for database, may := range map[string]bool{"EdFi_Admin_1": true, "EdFi_Admin_Template": true, "payroll": false} {
		u, err := url.Parse(server.URL(database))
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(login.Username, login.Password)
		conn, err := pgx.Connect(t.Context(), u.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), "DELETE FROM dbo.clientaccesstokens WHERE expiration < 'epoch'"); (err == nil) != may {
			t.Errorf("%s: %v", database, err)
		}
		_ = conn.Close(t.Context())
	}
	log, err := os.ReadFile(server.LogFile())
	if err != nil || !bytes.Contains(log, []byte("GRANT USAGE ON SCHEMA")) || bytes.Contains(log, []byte(login.Password)) || bytes.Contains(out, []byte(login.Password)) {
		t.Errorf("the server's log, %d bytes, %v", len(log), err)
	}
	ran, err := os.ReadFile(filepath.Join(programs, "sqlcmd.log"))
	if want := "-b -d EdFi_Admin_1 -i infra/sqlserver/role.sql\n-b -d EdFi_Admin_Template -i infra/sqlserver/role.sql\n"; string(ran) != want {
		t.Errorf("sqlcmd: %v\n%s", err, ran)
	}

	// Nothing was purged before somebody had looked; then the schedule is on.
	same(t, "asked", c.asked(name), `["{\"action\":\"check\"}", "{\"action\":\"dry-run\"}", "{\"action\":\"purge\",\"maxRows\":100000}", "{\"action\":\"purge\"}"]`)
	for _, want := range []string{"schedule  ENABLED", "The stack says ScheduleState=DISABLED"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("it does not say %q", want)
		}
	}
	if status := second.status(t, "purge-tokens-network"); status != "CREATE_COMPLETE" {
		t.Errorf("the network is %s", status)
	}
}

// playFunctions puts the functions of the test before the imitation.
func (c *cloud) playFunctions(t *testing.T) {
	t.Helper()
	behind, err := url.Parse(c.url)
	if err != nil {
		t.Fatal(err)
	}
	rest := httputil.NewSingleHostReverseProxy(behind)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m := invocation.FindStringSubmatch(r.URL.Path); m != nil {
			c.invoke(w, r, m[1])
			return
		}
		rest.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	c.url, c.functions = front.URL, map[string]*fakeFunction{}
}
