// Command demo shows one scheduled run of the purge, on this machine alone: the
// real Lambda binary, a real PostgreSQL, and stand-ins for what AWS offers.
//
//	demo BOOTSTRAP
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

// tenants are the databases of the demonstration, and how many expired tokens
// each holds, and as many live ones. The template is excluded. On a server in
// DATABASE_URL there may be real ones, so no name or pattern is like theirs.
var tenants = []struct {
	name string
	rows int
}{
	{"EdFi_AdminDemo_Tenant1", 30_000},
	{"EdFi_AdminDemo_Tenant2", 15_000},
	{"EdFi_AdminDemo_Tenant3", 4_000},
	{"EdFi_AdminDemo_Template", 1_000},
}

const (
	databases = "EdFi_AdminDemo_*,!EdFi_AdminDemo_Template"

	// mark is the comment on each database that the demonstration created, the
	// only ones that it drops.
	mark = "created by make demo, which also drops it"

	timeout = 5 * time.Minute // the function's, as it is deployed

	// What EventBridge sends for a rule with a schedule.
	event = `{"version":"0","id":"5c7a1c5e-4f4e-4f0e-9a55-0d6f0f6f3b1a","detail-type":"Scheduled Event","source":"aws.events","account":"123456789012","time":"2026-11-23T14:00:00Z","region":"us-east-1","resources":["arn:aws:events:us-east-1:123456789012:rule/purge-tokens"],"detail":{}}`
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if len(os.Args) != 2 {
		return errors.New("usage: demo BOOTSTRAP")
	}
	out := newScreen()
	out.title("Ed-Fi expired-token purge: one scheduled run, on this machine alone")
	r, err := rig.New(ctx, os.Args[1], pgserver.Options{Progress: out.progress})
	if err != nil {
		return err
	}
	defer r.Close()
	kind := "a throwaway"
	if r.Postgres.Found() {
		kind = "the server in DATABASE_URL"
		if err := drop(ctx, r.Postgres); err != nil { // what a killed demonstration left
			return err
		}
		defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx), r.Postgres)) }()
	}
	out.step("PostgreSQL", "%s:%d, %s", r.Postgres.Host, r.Postgres.Port, kind)
	out.step("Secrets", "%s holds the login, behind a stand-in for Secrets Manager", rig.SecretID)

	var tables []*table
	for _, tenant := range tenants {
		conn, err := create(context.WithoutCancel(ctx), r, tenant.name) // to its mark, whatever happens
		if err != nil {
			return err
		}
		defer conn.Close(context.Background()) //nolint:errcheck // its database goes
		fill := edfi.FillOptions{Expired: tenant.rows, Live: tenant.rows}
		err = edfi.Fill(ctx, conn, fill, func(done, total int) {
			out.progress(fmt.Sprintf("%s  %s of %s tokens written", tenant.name, thousands(done), thousands(total)))
		})
		if err != nil {
			return err
		}
		t := &table{name: tenant.name, conn: conn}
		if err := t.count(ctx, &t.before); err != nil {
			return err
		}
		tables = append(tables, t)
	}
	out.step("Databases", "three tenants and a template, with dbo.ClientAccessTokens")
	if err := preview(ctx, out, r); err != nil {
		return err
	}
	out.title("The scheduled run")
	function, err := r.Start(ctx, "DATABASES="+databases)
	if err != nil {
		return err
	}
	out.step("Function", "%s, polling a stand-in for the Lambda Runtime API", os.Args[1])
	out.step("", "DATABASES=%s", databases)
	out.step("Event", `"Scheduled Event" from aws.events`)

	first, err := invoke(ctx, out, function)
	if err != nil {
		return err
	}
	out.blank()
	out.line("%-24s %18s %18s", "tokens", "before", "after")
	out.line("%-24s %9s %8s %9s %8s", "", "expired", "live", "expired", "live")
	for _, t := range tables {
		if err := t.count(ctx, &t.after); err != nil {
			return err
		}
		out.line("%-24s %9s %8s %9s %8s", t.name, thousands(t.before.expired), thousands(t.before.live), thousands(t.after.expired), thousands(t.after.live))
	}
	metrics, logs := split(first.written)
	out.title("The metric lines, in CloudWatch's embedded metric format")
	out.text(metrics)
	out.title("The log")
	out.text(logs)
	out.title("The result")
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, first.answer, "", "  "); err != nil {
		return err
	}
	out.text(pretty.String())

	again, err := invoke(ctx, out, function)
	if err != nil {
		return err
	}
	out.title("The same event again finds nothing to do")
	out.line("%d rows deleted in %d ms", again.DeletedRows, again.DurationMs)
	return nil
}

// create makes a database with the mark on it.
func create(ctx context.Context, r *rig.Rig, name string) (*pgx.Conn, error) {
	conn, err := r.CreateDatabase(ctx, name)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf("COMMENT ON DATABASE %s IS '%s'", pgx.Identifier{name}.Sanitize(), mark))
	return conn, err
}

// drop removes the databases that bear the mark.
func drop(ctx context.Context, server *pgserver.Server) error {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // the statements have ended
	rows, err := conn.Query(ctx, "SELECT datname FROM pg_database WHERE shobj_description(oid, 'pg_database') = $1", mark)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		// Not WITH (FORCE): another demonstration may be at work in it.
		if _, err := conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
			return fmt.Errorf("drop database %s: %w", name, err)
		}
	}
	return nil
}

// preview runs the function's binary as a command.
func preview(ctx context.Context, out *screen, r *rig.Rig) error {
	out.title("What a run would delete, by the same binary as a command: purge-tokens dry-run")
	command := exec.CommandContext(ctx, r.Binary, "dry-run")
	command.Env = []string{"SECRET_ID=" + rig.SecretID, "DB_TLS=disable", "DATABASES=" + databases, "AWS_REGION=us-east-1",
		"AWS_ENDPOINT_URL_SECRETS_MANAGER=" + r.Secrets.URL(), "AWS_ACCESS_KEY_ID=standin", "AWS_SECRET_ACCESS_KEY=standin"}
	command.Stderr = os.Stderr
	text, err := command.Output()
	if err != nil {
		return fmt.Errorf("purge-tokens dry-run: %w", err)
	}
	out.text(string(text))
	return nil
}

// table is the table of tokens of one database.
type table struct {
	name          string
	conn          *pgx.Conn
	before, after counts
}

type counts struct{ expired, live int }

func (t *table) count(ctx context.Context, c *counts) error {
	expired, live, err := edfi.Counts(ctx, t.conn)
	*c = counts{int(expired), int(live)}
	return err
}

// answer is what one invocation came to.
type answer struct {
	DeletedRows int64
	DurationMs  int64
	answer      json.RawMessage
	written     string
}

func invoke(ctx context.Context, out *screen, function *rig.Function) (answer, error) {
	start := time.Now()
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(out.interval()); ; {
			out.progress(fmt.Sprintf("purging  %.1f s", time.Since(start).Seconds()))
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	}()
	reply, written, err := function.Invoke(ctx, event, timeout)
	close(done)
	<-stopped
	if err != nil {
		return answer{}, err
	}
	if reply.Error != nil {
		return answer{}, fmt.Errorf("the function answered %s: %s", reply.Error.Type, reply.Error.Message)
	}
	a := answer{answer: reply.Payload, written: written}
	return a, json.Unmarshal(reply.Payload, &a)
}

// split parts the metric lines from the others.
func split(written string) (metrics, logs string) {
	for line := range strings.Lines(written) {
		if strings.HasPrefix(line, `{"_aws"`) {
			metrics += line
		} else {
			logs += line
		}
	}
	return metrics, logs
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
