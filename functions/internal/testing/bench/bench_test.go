// Package bench compares the purge with the statement that it replaces, one plain
// DELETE, and with those of other cleaners:
//
//	make bench
//
// A round empties the same table once with each cleaner, each time a fresh copy on
// the same server, and another one begins in each: so ratios hold where the
// machine's own speed does not. Run i of each benchmark, for -count, tells of
// round i. The purge is the real Lambda binary; its time is the one in its
// result, from connecting to the last look.
package bench

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/relay"
	"edfi-token-purge/functions/internal/testing/rig"
)

const (
	// linkDelay is that of a database in another availability zone, each way.
	linkDelay = 500 * time.Microsecond
	timeout   = 15 * time.Minute
)

var (
	bootstrap = flag.String("bootstrap", "", "path of the function's binary for this machine")
	deployed  = flag.String("deployed", "", "path of the function's binary as Lambda gets it, whose size is told")

	shared *stage // of all benchmarks
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if flag.Lookup("test.bench").Value.String() == "" {
		return m.Run(), nil
	}
	if *bootstrap == "" || flag.Lookup("test.benchtime").Value.String() != "1x" {
		return 0, errors.New("run make bench or make bench-short: a benchmark needs -bootstrap and -benchtime=1x")
	}
	if shared, err = newStage(context.Background(), *bootstrap); err != nil {
		return 0, err
	}
	defer shared.Close()
	var version string
	if err := shared.admin.QueryRow(context.Background(), "SHOW server_version").Scan(&version); err != nil {
		return 0, err
	}
	fmt.Println("postgres:", version) // for benchstat
	return m.Run(), nil
}

// size returns a number of rows or databases, or a fiftieth of it where it is
// only to be seen that all works.
func size(n int) int {
	if testing.Short() {
		return n / 50
	}
	return n
}

// rows returns the usual table: its rows have expired, but for one in a hundred.
func rows(n int) table {
	name := fmt.Sprintf("%dk", n/1000)
	if n >= 1_000_000 {
		name = fmt.Sprintf("%dM", n/1_000_000)
	}
	return table{name: name, expired: size(n), live: size(n) / 100}
}

// cleaner empties the database of what has expired and returns how long it took.
type cleaner func(context.Context, *stage) (metrics, time.Duration, error)

// entry is a cleaner that takes part in the rounds on a table.
type entry struct {
	name  string
	table table
	clean cleaner
}

// BenchmarkPurge compares this purge with a plain DELETE on tables of many kinds.
func BenchmarkPurge(b *testing.B) {
	noIndex, oneInstant, oldSnapshot := rows(1_000_000), rows(1_000_000), rows(1_000_000)
	noIndex.name, noIndex.noIndex = "1M-no-index", true
	oneInstant.name, oneInstant.oneInstant = "1M-one-instant", true
	oldSnapshot.name, oldSnapshot.oldSnapshot = "1M-old-snapshot", true
	onePercent := table{name: "20k-of-2M", expired: size(20_000), live: size(1_980_000)}
	for _, t := range []table{rows(50_000), rows(250_000), rows(1_000_000), noIndex, oneInstant, oldSnapshot, onePercent} {
		b.Run("rows="+t.name, func(b *testing.B) {
			entries := []entry{{"plain", t, plain}, {"purge", t, purgeBy()}, {"purge-2conns", t, purgeBy("CONCURRENCY=2")}}
			switch {
			case strings.Contains(t.name, "-"): // an odd one
				entries = entries[:2]
			case t.expired == size(1_000_000):
				entries = append(entries, entry{"bare", t, bare})
			}
			compare(b, entries...)
		})
	}
}

// BenchmarkLink does so over a slow link, which the plain DELETE does without.
func BenchmarkLink(b *testing.B) {
	t := rows(1_000_000)
	compare(b, entry{"plain", t, plain}, entry{"purge", t, overLink()}, entry{"purge-2conns", t, overLink("CONCURRENCY=2")})
}

// BenchmarkGrowth shows whether time grows with the rows, or with their square.
func BenchmarkGrowth(b *testing.B) {
	few, many := rows(1_000_000), rows(4_000_000)
	compare(b, entry{"purge-1M", few, purgeBy()}, entry{"purge-4M", many, purgeBy()}, entry{"plain-4M", many, plain})
}

// BenchmarkPeers compares other cleaners with the plain DELETE.
func BenchmarkPeers(b *testing.B) {
	t := rows(250_000)
	entries := []entry{{"plain", t, plain}}
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		entries = append(entries, entry{name, t, statement("DELETE FROM dbo.clientaccesstokens WHERE "+peers[name], peerBatch)})
	}
	compare(b, entries...)
}

// compare has the entries clean, and adds what each came to against the first.
func compare(b *testing.B, entries ...entry) {
	first := entries[0]
	report(b, entries, func(i int) (metrics, error) {
		return shared.measure(b.Context(), entries[i].table, entries[i].clean)
	}, func(all []metrics) {
		for _, m := range all {
			m["rate-%-of-"+first.name] = 100 * m["rows/s"] / all[0]["rows/s"]
			if cpu := all[0]["cpu-ns/row"]; cpu > 0 {
				m["cpu-%-of-"+first.name] = 100 * m["cpu-ns/row"] / cpu
			}
		}
	})
}

// report runs rounds as they are asked for, and has a benchmark for each entry
// that reports what was measured of it.
func report(b *testing.B, entries []entry, measure func(i int) (metrics, error), relate func([]metrics)) {
	var rounds [][]metrics
	round := func(b *testing.B) []metrics {
		all := make([]metrics, len(entries))
		for turn := range entries {
			i := (len(rounds) + turn) % len(entries)
			var err error
			if all[i], err = measure(i); err != nil {
				b.Fatalf("%s: %v", entries[i].name, err)
			}
		}
		relate(all)
		return all
	}
	for i, e := range entries {
		n := 0
		b.Run("by="+e.name, func(b *testing.B) {
			if n == len(rounds) {
				rounds = append(rounds, round(b))
			}
			b.ReportMetric(0, "ns/op") // means nothing here
			for unit, v := range rounds[n][i] {
				b.ReportMetric(v, unit)
			}
			n++
		})
	}
}

const expired = "expiration <= now() AT TIME ZONE 'utc'"

// plain is what all are measured against, and what Ed-Fi's API runs.
var plain = statement("DELETE FROM dbo.clientaccesstokens WHERE "+expired, 0)

// peers are other cleaners, by what their batches delete; docs/benchmarks.md says whose.
var peers = map[string]string{
	"id-in":        "id IN (SELECT id FROM dbo.clientaccesstokens WHERE " + expired + " LIMIT 5000)",
	"id-in-by-id":  "id IN (SELECT id FROM dbo.clientaccesstokens WHERE " + expired + " ORDER BY id LIMIT 5000)",
	"id-in-oldest": "id IN (SELECT id FROM dbo.clientaccesstokens WHERE " + expired + " ORDER BY expiration LIMIT 5000)",
	"ctid-any":     "ctid = ANY (ARRAY(SELECT ctid FROM dbo.clientaccesstokens WHERE " + expired + " LIMIT 5000))",
}

const peerBatch = 5000

// statement runs sql until it deletes less than a batch; once if that is 0. To
// connect does not count.
func statement(sql string, batch int64) cleaner {
	return func(ctx context.Context, s *stage) (metrics, time.Duration, error) {
		conn, err := s.connect(ctx, "cleaner")
		if err != nil {
			return nil, 0, err
		}
		defer conn.Close(ctx) //nolint:errcheck // nothing is under way
		start := time.Now()
		for {
			tag, err := conn.Exec(ctx, sql)
			if err != nil || tag.RowsAffected() < batch || batch == 0 {
				return metrics{}, time.Since(start), err
			}
		}
	}
}

// barePages is how many pages a batch of this purge has in these tables.
const barePages = 36

// bare is the deletes of this purge and nothing else: no look, no proof, and nothing to
// make way for. To connect does not count. One connection can't be quicker.
func bare(ctx context.Context, s *stage) (metrics, time.Duration, error) {
	conn, err := s.connect(ctx, "cleaner")
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	err = exec(ctx, conn, "SET synchronous_commit = off; SET enable_seqscan = off; SET enable_indexscan = off; SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan")
	pages, start := 0, time.Now()
	if err == nil {
		err = conn.QueryRow(ctx, "SELECT pg_relation_size('dbo.clientaccesstokens') / current_setting('block_size')::int").Scan(&pages)
	}
	for page := 0; page < pages && err == nil; page += barePages {
		_, err = conn.Exec(ctx, "DELETE FROM dbo.clientaccesstokens WHERE ctid >= $1::tid AND ctid < $2::tid AND expiration <= $3::timestamp",
			fmt.Sprintf("(%d,0)", page), fmt.Sprintf("(%d,0)", page+barePages), start.UTC())
	}
	return metrics{}, time.Since(start), err
}

// purgeBy is this purge with these settings.
func purgeBy(env ...string) cleaner {
	return func(ctx context.Context, s *stage) (metrics, time.Duration, error) {
		f, err := s.Start(ctx, append([]string{"DATABASES=" + database}, env...)...)
		if err != nil {
			return nil, 0, err
		}
		defer f.Stop()
		result, err := invoke(ctx, f, "{}")
		return metrics{"function-MB": memory(f)}, time.Duration(result.DurationMs) * time.Millisecond, err
	}
}

// overLink is purgeBy over a slow link.
func overLink(env ...string) cleaner {
	return func(ctx context.Context, s *stage) (metrics, time.Duration, error) {
		link, err := s.link()
		if err != nil {
			return nil, 0, err
		}
		defer link.Close()
		link.Delay(linkDelay)
		m, took, err := purgeBy(append(env, fmt.Sprintf("DB_PORT=%d", link.Port()))...)(ctx, s)
		if err != nil {
			return nil, 0, err
		}
		m["round-trip-ms"], err = roundTrip(ctx, s, link)
		return m, took, err
	}
}

// link starts a relay to the server.
func (s *stage) link() (*relay.Relay, error) {
	return relay.New(net.JoinHostPort(s.Postgres.Host, strconv.Itoa(int(s.Postgres.Port))))
}

// roundTrip returns what one takes through the relay, in milliseconds.
func roundTrip(ctx context.Context, s *stage, link *relay.Relay) (ms float64, err error) {
	config, err := pgx.ParseConfig(s.Postgres.URL("postgres"))
	if err != nil {
		return 0, err
	}
	config.Port = link.Port()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	const pings = 50
	start := time.Now()
	for range pings {
		err = errors.Join(err, conn.Ping(ctx))
	}
	return time.Since(start).Seconds() * 1000 / pings, err
}

// invoke has a function run to its end.
func invoke(ctx context.Context, f *rig.Function, event string) (result purge.Result, err error) {
	reply, _, err := f.Invoke(ctx, event, timeout)
	if err != nil {
		return result, err
	}
	if reply.Error != nil || json.Unmarshal(reply.Payload, &result) != nil || len(result.Databases) == 0 ||
		result.Status != purge.Complete && result.Databases[0].StopReason != purge.MaxRows {
		return result, fmt.Errorf("the function returned %.500s", reply.Payload)
	}
	return result, nil
}

// memory returns the most that a function had, in MB. Linux alone tells it.
func memory(f *rig.Function) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.PID()))
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	value, _, _ := strings.Cut(strings.TrimSpace(after), " ")
	kB, _ := strconv.ParseFloat(value, 64)
	return kB / 1024
}

// BenchmarkEmpty runs from a cold start where there is nothing to delete, in one
// database and in many.
func BenchmarkEmpty(b *testing.B) {
	for _, databases := range []int{1, size(300)} {
		b.Run(fmt.Sprintf("databases=%d", databases), func(b *testing.B) {
			ctx := b.Context()
			template, err := shared.template(ctx, table{name: "empty", live: 300})
			if err != nil {
				b.Fatal(err)
			}
			for i := range databases {
				// A benchmark that is run again has its databases.
				err := exec(ctx, shared.admin, fmt.Sprintf(`CREATE DATABASE empty_%d_%d TEMPLATE "%s"`, databases, i, template))
				if pg, ok := errors.AsType[*pgconn.PgError](err); err != nil && (!ok || pg.Code != "42P04") {
					b.Fatal(err)
				}
			}
			link, err := shared.link()
			if err != nil {
				b.Fatal(err)
			}
			defer link.Close()
			start := time.Now()
			names := fmt.Sprintf("empty_%d_*", databases)
			if databases == 1 { // by its name: the server's list of databases need not be read
				names = "empty_1_0"
			}
			f, err := shared.Start(ctx, "DATABASES="+names, fmt.Sprintf("DB_PORT=%d", link.Port()))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Stop()
			<-f.Polled()
			polled := time.Since(start)
			result, err := invoke(ctx, f, "{}")
			if err != nil || len(result.Databases) != databases || result.DeletedRows != 0 {
				b.Fatalf("%d databases, %d rows, %v", len(result.Databases), result.DeletedRows, err)
			}
			connections, trips := link.Counts()
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(polled.Seconds()*1000, "first-poll-ms")
			b.ReportMetric(float64(result.DurationMs), "run-ms")
			b.ReportMetric(float64(trips)/float64(connections), "round-trips/connection")
			b.ReportMetric(memory(f), "function-MB")
		})
	}
}

// BenchmarkBinary tells the size of what is deployed.
func BenchmarkBinary(b *testing.B) {
	content, err := os.ReadFile(*deployed)
	if err != nil {
		b.Skip("no -deployed: ", err)
	}
	var zipped counter
	archive := zip.NewWriter(&zipped)
	w, err := archive.Create("bootstrap")
	if err == nil {
		_, err = w.Write(content)
	}
	if err := errors.Join(err, archive.Close()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(len(content))/1e6, "binary-MB")
	b.ReportMetric(float64(zipped)/1e6, "zip-MB")
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
