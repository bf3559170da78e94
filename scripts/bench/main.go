// Command bench compares the purge with the statement that it replaces: one
// plain DELETE. Both empty the same table on the same server, in turn, so that
// their ratio holds where the machine's own speed does not.
//
//	bench [-rows N] [-large N] [-runs N] [-databases N] BOOTSTRAP
//
// The purge is the real Lambda binary; its time is the one in its result, from
// connecting to the last look. Statements are timed by the server's own log.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/scripts/edfi"
	"edfi-token-purge/scripts/relay"
	"edfi-token-purge/scripts/rig"
	"edfi-token-purge/scripts/throwaway"
)

const plainDelete = "DELETE FROM dbo.clientaccesstokens WHERE expiration < now() AT TIME ZONE 'utc'"

func main() {
	rows := flag.Int("rows", 1_000_000, "expired rows in the table")
	large := flag.Int("large", 4_000_000, "expired rows in the large table; 0 leaves it out")
	runs := flag.Int("runs", 5, "runs of each")
	databases := flag.Int("databases", 1000, "databases of the empty run over many; 0 leaves it out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: bench [-rows N] [-large N] [-runs N] [-databases N] BOOTSTRAP")
		os.Exit(2)
	}
	if err := run(ctx, flag.Arg(0), *rows, *large, *runs, *databases); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, rows, large, runs, databases int) error {
	r, err := rig.New(ctx, binary, throwaway.Options{
		Progress: say,
		Settings: map[string]string{
			// The log times every statement. The rest keeps checkpoints and
			// autovacuum from falling into one measurement and not the next.
			"log_min_duration_statement": "0",
			"log_line_prefix":            "%a|",
			"autovacuum":                 "off",
			"max_wal_size":               "16GB",
			"checkpoint_timeout":         "1h",
			"shared_buffers":             "512MB",
		},
	})
	if err != nil {
		return err
	}
	defer r.Close()
	b := bench{rig: r}
	if b.log, err = os.Open(r.Postgres.LogFile()); err != nil {
		return fmt.Errorf("a server of the bench's own is needed; unset DATABASE_URL: %w", err)
	}
	var version string
	if b.admin, err = pgx.Connect(ctx, r.Postgres.URL("postgres")); err == nil {
		err = b.admin.QueryRow(ctx, "SELECT current_setting('server_version')").Scan(&version)
	}
	if err != nil {
		return err
	}
	fmt.Printf("PostgreSQL %s, %d processors, %s/%s; %d runs of each, in turn; median (least to most)\n",
		version, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runs)

	small, err := b.compare(ctx, rows, runs)
	if err != nil {
		return err
	}
	if large > 0 {
		// Few are enough to see whether time grows with the square of the rows.
		big, err := b.compare(ctx, large, min(runs, 3))
		if err != nil {
			return err
		}
		perRow := func(t times, rows int) float64 { return median(t.purge) / float64(rows) }
		fmt.Printf("\na row out of %s costs %.2f times one out of %s\n", thousands(large), perRow(big, large)/perRow(small, rows), thousands(rows))
	}
	if err := b.empty(ctx, runs); err != nil || databases == 0 {
		return err
	}
	return b.many(ctx, databases)
}

type bench struct {
	rig   *rig.Rig
	admin *pgx.Conn
	log   *os.File
}

// times are seconds of each run, and milliseconds of its longest statement.
type times struct {
	plain, purge, ratio, longestPlain, longest []float64
}

// compare measures both on a table with so many expired rows.
func (b *bench) compare(ctx context.Context, rows, runs int) (times, error) {
	var t times
	template := fmt.Sprintf("template_%d", rows)
	conn, err := b.rig.CreateDatabase(ctx, template)
	if err != nil {
		return t, err
	}
	err = edfi.Fill(ctx, conn, edfi.FillOptions{Expired: rows, Live: rows / 100}, func(done, total int) {
		if done%500_000 == 0 {
			say(fmt.Sprintf("%s of %s rows written", thousands(done), thousands(total)))
		}
	})
	if err == nil {
		_, err = conn.Exec(ctx, "VACUUM ANALYZE")
	}
	conn.Close(ctx) //nolint:errcheck // nothing is under way
	if err != nil {
		return t, err
	}
	for i := range runs {
		say(fmt.Sprintf("%s rows, run %d of %d", thousands(rows), i+1, runs))
		plain, longestPlain, err := b.measure(ctx, template, b.plain)
		if err != nil {
			return t, err
		}
		purge, longest, err := b.measure(ctx, template, b.purge)
		if err != nil {
			return t, err
		}
		t.plain, t.purge, t.ratio = append(t.plain, plain), append(t.purge, purge), append(t.ratio, plain/purge)
		t.longestPlain, t.longest = append(t.longestPlain, longestPlain), append(t.longest, longest)
	}
	if _, err := b.admin.Exec(ctx, "DROP DATABASE "+template); err != nil {
		return t, err
	}
	perSecond := func(seconds []float64) []float64 {
		var s []float64
		for _, v := range seconds {
			s = append(s, float64(rows)/v)
		}
		return s
	}
	fmt.Printf("\n%s expired rows\n", thousands(rows))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\trows/s\tratio\tlongest statement, ms\t")
	fmt.Fprintf(w, "one DELETE\t%s\t1\t%s\t\n", spread(perSecond(t.plain), "%.0f"), spread(t.longestPlain, "%.0f"))
	fmt.Fprintf(w, "purge\t%s\t%s\t%s\t\n", spread(perSecond(t.purge), "%.0f"), spread(t.ratio, "%.2f"), spread(t.longest, "%.0f"))
	return t, w.Flush()
}

// measure runs do on a fresh copy of the template and answers its seconds and
// the milliseconds of its longest statement.
func (b *bench) measure(ctx context.Context, template string, do func(context.Context, string) (float64, error)) (seconds, longest float64, err error) {
	const name = "EdFi_Admin"
	for _, sql := range []string{`CREATE DATABASE "EdFi_Admin" TEMPLATE ` + template, "CHECKPOINT"} {
		if _, err := b.admin.Exec(ctx, sql); err != nil {
			return 0, 0, err
		}
	}
	if _, err := b.log.Seek(0, io.SeekEnd); err != nil {
		return 0, 0, err
	}
	if seconds, err = do(ctx, name); err != nil {
		return 0, 0, err
	}
	if longest, err = b.longest(); err != nil {
		return 0, 0, err
	}
	conn, err := pgx.Connect(ctx, b.rig.Postgres.URL(name))
	if err != nil {
		return 0, 0, err
	}
	expired, _, err := edfi.Counts(ctx, conn)
	conn.Close(ctx) //nolint:errcheck // nothing is under way
	if err == nil && expired != 0 {
		err = fmt.Errorf("%d expired rows are left", expired)
	}
	if err == nil {
		_, err = b.admin.Exec(ctx, `DROP DATABASE "EdFi_Admin" WITH (FORCE)`)
	}
	return seconds, longest, err
}

func (b *bench) plain(ctx context.Context, name string) (float64, error) {
	conn, err := pgx.Connect(ctx, b.rig.Postgres.URL(name)+"&application_name=plain")
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	start := time.Now()
	_, err = conn.Exec(ctx, plainDelete)
	return time.Since(start).Seconds(), err
}

func (b *bench) purge(ctx context.Context, name string) (float64, error) {
	f, err := b.rig.Start(ctx, "DATABASES="+name)
	if err != nil {
		return 0, err
	}
	defer f.Stop()
	reply, _, err := f.Invoke(ctx, "{}", 15*time.Minute)
	if err != nil {
		return 0, err
	}
	var result struct {
		Status    string
		Databases []struct{ DurationMs float64 }
	}
	if reply.Error != nil || json.Unmarshal(reply.Payload, &result) != nil || result.Status != "complete" {
		return 0, fmt.Errorf("the function answered %s", reply.Payload)
	}
	return result.Databases[0].DurationMs / 1000, nil
}

// empty measures the run that finds nothing.
func (b *bench) empty(ctx context.Context, runs int) error {
	conn, err := b.rig.CreateDatabase(ctx, "EdFi_Admin_Empty")
	if err != nil {
		return err
	}
	conn.Close(ctx) //nolint:errcheck // nothing is under way
	var ms []float64
	for range runs {
		s, err := b.purge(ctx, "EdFi_Admin_Empty")
		if err != nil {
			return err
		}
		ms = append(ms, s*1000)
	}
	fmt.Printf("\na run that finds nothing takes %s ms, connecting included\n", spread(ms, "%.0f"))
	return nil
}

// many measures the run over many databases that finds nothing in any.
func (b *bench) many(ctx context.Context, databases int) error {
	for i := range databases {
		if i%100 == 0 {
			say(fmt.Sprintf("%s of %s databases made", thousands(i), thousands(databases)))
		}
		if _, err := b.admin.Exec(ctx, fmt.Sprintf(`CREATE DATABASE admin_%d TEMPLATE "EdFi_Admin_Empty"`, i)); err != nil {
			return err
		}
	}
	between, err := relay.New(net.JoinHostPort(b.rig.Postgres.Host, strconv.Itoa(int(b.rig.Postgres.Port))))
	if err != nil {
		return err
	}
	defer between.Close()
	f, err := b.rig.Start(ctx, "DATABASES=admin_*", fmt.Sprintf("DB_PORT=%d", between.Port()))
	if err != nil {
		return err
	}
	reply, _, err := f.Invoke(ctx, "{}", 15*time.Minute)
	if err != nil {
		return err
	}
	var result struct {
		Status     string
		DurationMs float64
		Databases  []json.RawMessage
	}
	if reply.Error != nil || json.Unmarshal(reply.Payload, &result) != nil || result.Status != "complete" || len(result.Databases) != databases {
		return fmt.Errorf("the function answered %.500s", reply.Payload)
	}
	connections, trips := between.Counts()
	fmt.Printf("the same over %s databases, four at a time, takes %.1f s and %.1f round trips for each, log-in included\n",
		thousands(databases), result.DurationMs/1000, float64(trips)/float64(connections))
	return nil
}

var logged = regexp.MustCompile(`^(edfi-token-purge|plain)\|LOG:  duration: ([0-9.]+) ms`)

// longest reads the log from where it stands and answers the longest statement
// of the two that are compared, in milliseconds.
func (b *bench) longest() (float64, error) {
	longest := 0.0
	lines := bufio.NewScanner(b.log)
	for lines.Scan() {
		if m := logged.FindStringSubmatch(lines.Text()); m != nil {
			ms, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				return 0, err
			}
			longest = max(longest, ms)
		}
	}
	return longest, lines.Err()
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// spread writes the median, and the least and most in brackets.
func spread(values []float64, format string) string {
	return fmt.Sprintf(format+" ("+format+" to "+format+")", median(values), slices.Min(values), slices.Max(values))
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func say(text string) { fmt.Fprintln(os.Stderr, "...", strings.TrimSpace(text)) }
