package stack

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// newSecondCloud starts another imitation, ministack, whose CloudFormation takes
// template.yaml as it is, with change sets, constraints and roll-backs.
func newSecondCloud(t *testing.T) *cloud {
	t.Helper()
	python := root + "/.venv/ministack/bin/python"
	if _, err := os.Stat(python); errors.Is(err, os.ErrNotExist) && os.Getenv("STACK_TOOLS") != "required" {
		t.Skip("no .venv/ministack; scripts/venv.sh ministack installs it")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	listener.Close() // ministack takes no port of its own choice
	c := &cloud{url: "http://127.0.0.1:" + port}
	process := exec.Command(python, "run_ministack.py")
	process.Env = append(c.env(), "GATEWAY_PORT="+port, "BIND_HOST=127.0.0.1", "MINISTACK_ACCOUNT_ID="+account)
	output, err := os.Create(filepath.Join(t.TempDir(), "ministack"))
	if err != nil {
		t.Fatal(err)
	}
	process.Stdout, process.Stderr = output, output
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		_ = output.Close()
		if t.Failed() {
			said, _ := os.ReadFile(output.Name())
			t.Logf("ministack: ...%s", tail(string(said), 4000))
		}
	})
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if response, err := http.Get(c.url + "/_ministack/health"); err == nil {
			response.Body.Close()
			return c
		}
	}
	t.Fatal("ministack does not answer")
	return nil
}

// checkout is a copy of what is deployed, with a samconfig.toml of its own.
type checkout struct {
	cloud *cloud
	dir   string
}

func (c *cloud) checkout(t *testing.T) checkout {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"functions", "infra", "scripts"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum", "Makefile", "template.yaml"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	venv, _ := filepath.Abs(root + "/.venv")
	if err := os.Symlink(venv, filepath.Join(dir, ".venv")); err != nil {
		t.Fatal(err)
	}
	k := checkout{c, dir}
	k.set(t)
	return k
}

// set writes samconfig.toml: infra's, with some lines replaced.
func (k checkout) set(t *testing.T, replace ...string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "infra/samconfig.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(string(text), replace[i]) {
			t.Fatalf("samconfig.toml has no %s", replace[i])
		}
	}
	if err := os.WriteFile(filepath.Join(k.dir, "samconfig.toml"), []byte(strings.NewReplacer(replace...).Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// deploy runs scripts/deploy.sh for production, and returns all that it printed.
func (k checkout) deploy(t *testing.T, stdin string, env ...string) (string, error) {
	t.Helper()
	command := exec.Command(filepath.Join(k.dir, "scripts/deploy.sh"))
	command.Env = append(append(k.cloud.env(), "STAGE=prod", "SAM_CLI_TELEMETRY=0", "VERSION=1.2.3", "COMMIT=0123abc", "GOFLAGS=-buildvcs=false"), env...)
	command.Stdin = strings.NewReader(stdin)
	out, err := command.CombinedOutput()
	return string(out), err
}

const layer = `"DbCaLayerArn=arn:aws:lambda:us-east-1:123456789012:layer:rds-ca:1",`

// ask sends a request of CloudFormation and returns the answer, which is XML.
func (c *cloud) ask(t *testing.T, action, stack string, form url.Values) (string, error) {
	t.Helper()
	form = maps.Clone(form)
	if form == nil {
		form = url.Values{}
	}
	form.Set("Action", action)
	form.Set("Version", "2010-05-15")
	form.Set("StackName", stack)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/"+region+"/cloudformation/aws4_request, SignedHeaders=host, Signature=x")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode >= 300 {
		return "", fmt.Errorf("%s: %s", action, text)
	}
	return string(text), nil
}

var stackStatus = regexp.MustCompile(`<StackStatus>(\w+)</StackStatus>`)

// update gives the stack another value of some parameters, keeps all others, and
// returns what it comes to.
func (c *cloud) update(t *testing.T, stack string, all []string, values map[string]string) (status string) {
	t.Helper()
	form := url.Values{"UsePreviousTemplate": {"true"}, "Capabilities.member.1": {"CAPABILITY_IAM"}}
	for i, name := range all {
		of := fmt.Sprintf("Parameters.member.%d.", i+1)
		form.Set(of+"ParameterKey", name)
		if value, ok := values[name]; ok {
			form.Set(of+"ParameterValue", value)
		} else {
			form.Set(of+"UsePreviousValue", "true")
		}
	}
	if _, err := c.ask(t, "UpdateStack", stack, form); err != nil {
		return err.Error()
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		text, err := c.ask(t, "DescribeStacks", stack, nil)
		if err != nil {
			return err.Error()
		}
		if status = stackStatus.FindStringSubmatch(text)[1]; !strings.HasSuffix(status, "_IN_PROGRESS") {
			return status
		}
	}
	return status
}

// The script with the real SAM CLI, in the order of a first week.
func TestTheStackIsDeployedUpdatedAndDeletedWithTheScripts(t *testing.T) {
	t.Parallel()
	const name = "purge-tokens-prod"
	c := newSecondCloud(t)
	k := c.checkout(t)
	says := func(t *testing.T, text string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("it does not say %q:\n%s", want, tail(text, 6000))
				return
			}
		}
	}

	k.set(t, `"Timeout=600",`, `"Timeout=600",`+"\n    "+layer)
	out, err := k.deploy(t, "", "YES=1")
	if err == nil {
		t.Errorf("a layer that is not there is deployed\n%s", out)
	}
	says(t, out, "version   1.2.3 (0123abc)", "failed first: PurgeTokens (AWS::Lambda::Function)", "layer:rds-ca:1 does not exist",
		"deploy again", "deleting "+name+", whose creation failed (ROLLBACK_COMPLETE)", "deploy.sh: the deployment failed")
	if stacks := c.list(t, "cloudformation", "describe-stacks", "--query", "Stacks[?StackName=='"+name+"']"); len(stacks) != 0 {
		t.Errorf("left in the way: %s", pretty(stacks))
	}

	k.set(t)
	if out, err = k.deploy(t, "n\n"); err != nil || !strings.Contains(out, "Deploy this changeset?") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = k.deploy(t, "", "YES=1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	says(t, out, "deployed  1.2.3", "alarms    operations@example.org")
	if strings.Contains(out, "parameters, against") {
		t.Errorf("a new stack is compared\n%s", out)
	}
	first := c.settings(t, name)

	k.set(t, `"Timeout=600",`, `"Timeout=700",`, `    "MaxRows=0",`, `    'ScheduleExpression="rate(15 minutes)"',`, `    "AlarmEmail=operations@example.org",`, `    'AlarmEmail=""',`)
	if out, err = k.deploy(t, "", "YES=1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	says(t, out, "parameters, against the running stack:", "  Timeout              600 -> 700\n",
		"  ScheduleExpression   rate(30 minutes) -> rate(15 minutes)\n", "  AlarmEmail           operations@example.org -> empty\n", "alarms    NOBODY")

	// What is no longer named keeps its last value.
	k.set(t, `    "Timeout=600",`, "    "+layer)
	out, err = k.deploy(t, "", "YES=1")
	if err == nil {
		t.Errorf("a layer that is not there is deployed\n%s", out)
	}
	says(t, out, "  Timeout              700, not given: stays as it was last set; its default is 300\n",
		"  ScheduleExpression   rate(15 minutes), not given: stays as it was last set; its default is rate(30 minutes)\n",
		"failed first: PurgeTokens (AWS::Lambda::Function)", name+" runs as it did before.")
	if status := c.status(t, name); status != "UPDATE_ROLLBACK_COMPLETE" {
		t.Errorf("the stack is %s", status)
	}

	k.set(t, `"Timeout=600",`, `"Timeout=901",`)
	if out, err = k.deploy(t, "", "YES=1"); err == nil {
		t.Errorf("901 seconds are deployed\n%s", out)
	}
	says(t, out, "nothing was deployed")

	// As at first.
	k.set(t, `    "MaxRows=0",`, `    "MaxRows=0",`+"\n"+`    'ScheduleExpression="rate(30 minutes)"',`)
	if out, err = k.deploy(t, "", "YES=1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if now := c.settings(t, name); now != first {
		t.Errorf("it is not as at first:\n%s\nbut\n%s", first, now)
	}

	if _, stderr, err := c.script(t, "destroy.sh", "", "STACK="+name, "YES=1"); err != nil {
		t.Errorf("%v\n%s", err, stderr)
	}
	c.nothingLeft(t)
}

// settings returns what the stack's resources are set to.
func (c *cloud) settings(t *testing.T, stack string) string {
	t.Helper()
	all := []any{
		c.list(t, "cloudformation", "describe-stacks", "--stack-name", stack, "--query", "Stacks[0].Parameters"),
		c.aws(t, "lambda", "get-function-configuration", "--function-name", stack,
			"--query", "{m:MemorySize,t:Timeout,e:Environment,v:VpcConfig,l:Layers,g:LoggingConfig,x:TracingConfig,a:Architectures}"),
		c.list(t, "events", "list-rules", "--query", "Rules[].[ScheduleExpression,State]"),
		c.list(t, "cloudwatch", "describe-alarms", "--query", "MetricAlarms[].[AlarmName,Threshold,Period,EvaluationPeriods,Namespace,MetricName,AlarmActions]"),
		c.list(t, "logs", "describe-log-groups", "--query", "logGroups[].[logGroupName,retentionInDays,kmsKeyId]"),
	}
	return pretty(all)
}

// nothingLeft looks for what a deleted stack left.
func (c *cloud) nothingLeft(t *testing.T) {
	t.Helper()
	for _, left := range [][]string{
		{"lambda", "list-functions", "--query", "Functions[].FunctionName"},
		{"iam", "list-roles", "--query", "Roles[?!starts_with(Path, '/aws-')].RoleName"},
		{"events", "list-rules", "--query", "Rules[].Name"},
		{"sqs", "list-queues", "--query", "QueueUrls || `[]`"},
		{"sns", "list-topics", "--query", "Topics[].TopicArn"},
		{"logs", "describe-log-groups", "--query", "logGroups[].logGroupName"},
		{"cloudwatch", "describe-alarms", "--query", "MetricAlarms[].AlarmName"},
		{"cloudwatch", "list-dashboards", "--query", "DashboardEntries[].DashboardName"},
	} {
		if out := c.list(t, left...); len(out) != 0 {
			t.Errorf("%q after the deletion: %v", left, out)
		}
	}
}

// Each parameter is changed alone and set back, as operators do.
func TestEachParameterCanBeChangedAndSetBack(t *testing.T) {
	if os.Getenv("STACK_ALL") == "" {
		t.Skip("takes minutes; make validate-all runs it")
	}
	t.Parallel()
	const name = "purge-tokens-prod"
	c := newSecondCloud(t)
	c.aws(t, "lambda", "publish-layer-version", "--layer-name", "rds-ca", "--zip-file", "fileb://"+emptyZip(t))
	k := c.checkout(t)
	if out, err := k.deploy(t, "", "YES=1", "STAGE=dev", "STACK="+name); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	first := c.settings(t, name)
	parameters := load(t).Parameters
	all := slices.Sorted(maps.Keys(parameters))
	before := map[string]string{}
	for _, p := range c.list(t, "cloudformation", "describe-stacks", "--stack-name", name, "--query", "Stacks[0].Parameters") {
		before[p.(object)["ParameterKey"].(string)], _ = p.(object)["ParameterValue"].(string)
	}
	for _, p := range all {
		there, back := map[string]string{p: others[p]}, map[string]string{p: before[p]}
		if others[p] == before[p] {
			there[p] = fmt.Sprint(parameters[p].Default)
		}
		for with, value := range together[p] {
			there[with], back[with] = value, before[with]
		}
		if status := c.update(t, name, all, there); status != "UPDATE_COMPLETE" {
			t.Errorf("%v: %s", there, status)
		}
		if status := c.update(t, name, all, back); status != "UPDATE_COMPLETE" {
			t.Errorf("%v: %s", back, status)
		}
	}
	if now := c.settings(t, name); now != first {
		t.Errorf("it is not as at first:\n%s\nbut\n%s", first, now)
	}
	c.aws(t, "cloudformation", "delete-stack", "--stack-name", name)
	c.aws(t, "cloudformation", "wait", "stack-delete-complete", "--stack-name", name)
	c.aws(t, "lambda", "delete-layer-version", "--layer-name", "rds-ca", "--version-number", "1")
	c.nothingLeft(t)
}
