// Command demo shows two scheduled runs of the purge, on this machine alone: the
// real Lambda binary, a real PostgreSQL, and stand-ins for what AWS offers.
//
//	demo BOOTSTRAP LOG
//
// What the function wrote and returned goes to the file LOG.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

// tenants are the databases of the demonstration. Each table of one holds that many
// expired tokens, and as many live ones. The template is excluded. On a server in
// DATABASE_URL there may be real ones, so no name or pattern is like theirs.
var tenants = []struct {
	name            string
	rows, adminRows int
}{
	{"EdFi_AdminDemo_Tenant1", 30_000, 6_000},
	{"EdFi_AdminDemo_Tenant2", 15_000, 3_000},
	{"EdFi_AdminDemo_Template", 1_000, 500},
}

// shown are the tables that it purges.
var shown = []struct {
	table purge.Table
	count func(context.Context, *pgx.Conn) (expired, live int64, err error)
}{
	{purge.ClientAccessTokens, edfi.Counts},
	{purge.AdminTokens, edfi.AdminCounts},
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
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demo BOOTSTRAP LOG")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1], os.Args[2])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bootstrap, logPath string) (err error) {
	fmt.Print("A scheduled run of the purge, and one more, on this machine alone\n\n")
	r, err := rig.New(ctx, bootstrap, pgserver.Options{Progress: progress})
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
	step("PostgreSQL", "%s:%d, %s", r.Postgres.Host, r.Postgres.Port, kind)
	step("Secret", "%s, from a stand-in for Secrets Manager", rig.SecretID)
	var conns []*pgx.Conn
	var before []count
	for _, tenant := range tenants {
		progress("filling " + tenant.name)
		conn, err := create(context.WithoutCancel(ctx), r, tenant.name) // to its mark, whatever happens
		if err != nil {
			return err
		}
		defer conn.Close(context.Background()) //nolint:errcheck // its database goes
		conns = append(conns, conn)
		if err := fill(ctx, conn, tenant.rows, tenant.adminRows); err != nil {
			return err
		}
		if before, err = counted(ctx, conn, before); err != nil {
			return err
		}
	}
	tables := purge.ClientAccessTokens.Name + "," + purge.AdminTokens.Name
	function, err := r.Start(ctx, "DATABASES="+databases, "TABLES="+tables)
	if err != nil {
		return err
	}
	step("Function", "%s, on a stand-in for the Lambda runtime", bootstrap)
	step("DATABASES", "%s", databases)
	step("TABLES", "%s", tables)
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	for _, name := range []string{"Event", "Once more"} {
		result, metrics, err := invoke(ctx, function, log)
		if err != nil {
			return err
		}
		step(name, `"Scheduled Event": %s, %s rows deleted in %d ms`, result.Status, purge.Grouped(result.DeletedRows), result.DurationMs)
		for _, m := range metrics {
			step("  metric", "%s: DeletedRows %v, Failures %v", m["Database"], m["DeletedRows"], m["Failures"])
		}
	}
	step("Log", "%s has log, metric lines and results", logPath)
	var after []count
	for _, conn := range conns {
		if after, err = counted(ctx, conn, after); err != nil {
			return err
		}
	}
	show(before, after)
	return nil
}

// count is of one table of a database.
type count struct{ expired, live int64 }

// counted appends the counts of all tables of a database.
func counted(ctx context.Context, conn *pgx.Conn, counts []count) ([]count, error) {
	for _, s := range shown {
		expired, live, err := s.count(ctx, conn)
		if err != nil {
			return nil, err
		}
		counts = append(counts, count{expired, live})
	}
	return counts, nil
}

func fill(ctx context.Context, conn *pgx.Conn, rows, adminRows int) error {
	if err := edfi.CreateOtherTables(ctx, conn); err != nil {
		return err
	}
	if err := edfi.Fill(ctx, conn, edfi.FillOptions{Expired: rows, Live: rows}, nil); err != nil {
		return err
	}
	return edfi.FillAdminTokens(ctx, conn, adminRows, adminRows)
}

// show writes the counts of each table of each tenant, before and after.
func show(before, after []count) {
	fmt.Printf("\n%-42s %15s   %15s\n", "TOKENS", "BEFORE", "AFTER")
	fmt.Printf("%-42s %7s %7s   %7s %7s\n", "", "expired", "live", "expired", "live")
	for i := range before {
		name := tenants[i/len(shown)].name
		if i%len(shown) > 0 {
			name = ""
		}
		fmt.Printf("%-23s %-18s %7s %7s   %7s %7s\n", name, shown[i%len(shown)].table.Name,
			purge.Grouped(before[i].expired), purge.Grouped(before[i].live), purge.Grouped(after[i].expired), purge.Grouped(after[i].live))
	}
}

// invoke has the function run as the schedule does, logs all of it, and returns
// the result and the metric lines.
func invoke(ctx context.Context, function *rig.Function, log *os.File) (result purge.Result, metrics []map[string]any, err error) {
	reply, written, err := function.Invoke(ctx, event, timeout)
	if err != nil {
		return result, nil, err
	}
	if _, err := fmt.Fprintf(log, "%s%s\n\n", written, reply.Payload); err != nil {
		return result, nil, err
	}
	if reply.Error != nil {
		return result, nil, fmt.Errorf("the function failed: %s: %s", reply.Error.Type, reply.Error.Message)
	}
	for line := range strings.Lines(written) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["_aws"] != nil {
			metrics = append(metrics, m)
		}
	}
	return result, metrics, json.Unmarshal(reply.Payload, &result)
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

// progress writes a line that the next step replaces; on a terminal alone.
func progress(text string) {
	if terminal() {
		fmt.Print("\r\x1b[K... ", text)
	}
}

func step(name, format string, args ...any) {
	if terminal() {
		fmt.Print("\r\x1b[K")
	}
	fmt.Printf("%-11s %s\n", name, fmt.Sprintf(format, args...))
}

func terminal() bool {
	info, err := os.Stdout.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
