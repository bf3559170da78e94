// Command bench compares the purge with the statement that it replaces, one
// plain DELETE, and with the statements of other cleaners. All empty copies of
// the same table on the same server, in turn, so that their ratios hold where
// the machine's own speed does not.
//
//	bench [-short] [-out DIR] [-deployed FILE] BOOTSTRAP
//
// The purge is the real Lambda binary; its time is the one in its result, from
// connecting to the last look. Statements are timed by the server's own log.
// With -out the tables are written into BENCHMARKS.md there, and the pictures
// beside this source.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

// plan says how much is measured.
type plan struct {
	sizes     []size // of the usual table
	main      int    // the one of them that is emptied over the slow link too
	api       int    // the one of them that is emptied beside the API too
	apiRuns   int
	idle      time.Duration // so long the API is alone
	peersFor  time.Duration // a peer that would take longer is left out
	shapes    size          // of the odd tables
	live      int           // rows of the table of which 1 % has expired
	starts    int           // cold ones
	databases int           // of the empty run over many
}

// size is how many expired rows a table has, and how often it is emptied.
type size struct{ rows, runs int }

var (
	full = plan{
		sizes: []size{{50_000, 3}, {250_000, 3}, {1_000_000, 9}, {4_000_000, 2}, {10_000_000, 1}},
		main:  1_000_000, api: 4_000_000, apiRuns: 5, idle: 8 * time.Second, peersFor: 7 * time.Second,
		shapes: size{1_000_000, 3}, live: 2_000_000, starts: 10, databases: 300,
	}
	// short only shows that everything works.
	short = plan{
		sizes: []size{{20_000, 1}, {100_000, 1}},
		main:  20_000, api: 100_000, apiRuns: 1, idle: time.Second, peersFor: 2 * time.Second,
		shapes: size{20_000, 1}, live: 100_000, starts: 2, databases: 20,
	}
)

func main() {
	brief := flag.Bool("short", false, "little of everything: to see that it works, not to judge by")
	out := flag.String("out", "", "directory of BENCHMARKS.md, which is rewritten, with its pictures; none if empty")
	deployed := flag.String("deployed", "", "the binary as Lambda gets it, of which the size is told")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: bench [-short] [-out DIR] [-deployed FILE] BOOTSTRAP")
		os.Exit(2)
	}
	p := full
	if *brief {
		p = short
	}
	if err := run(ctx, flag.Arg(0), *deployed, *out, p); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, deployed, out string, p plan) error {
	start := time.Now()
	s, err := newStage(ctx, binary)
	if err != nil {
		return err
	}
	defer s.close()
	var r report
	if err := r.tellMachine(ctx, s); err != nil {
		return err
	}
	var curves []curve
	var load []phase
	for _, size := range p.sizes {
		found, phases, err := usual(ctx, s, &r, p, size, curves)
		if err != nil {
			return err
		}
		curves = found
		load = append(load, phases...)
	}
	found, err := shapes(ctx, s, &r, p, curves)
	if err != nil {
		return err
	}
	curves = append(curves, found...)
	if err := startUp(ctx, s, &r, p.starts, deployed); err != nil {
		return err
	}
	if err := many(ctx, s, &r, p.databases); err != nil {
		return err
	}
	r.line(fmt.Sprintf("All of this took %.1f minutes.", time.Since(start).Minutes()))
	return r.write(out, curves, load)
}

// usual measures everything on the usual table of a size, and answers the
// curves with their new points, and what the API met.
func usual(ctx context.Context, s *stage, r *report, p plan, size size, curves []curve) ([]curve, []phase, error) {
	rows, runs := size.rows, size.runs
	t := table{expired: rows, live: rows / 100}
	if err := s.fill(ctx, t); err != nil {
		return nil, nil, err
	}
	defer s.empty()
	entries := []entry{{plainDelete, runs}, {purgeWith(1), runs}, {purgeWith(2), runs}}
	var link *slowLink
	if rows == p.main {
		var err error
		link, err = newSlowLink(s.rig.Postgres.Host, s.rig.Postgres.Port, linkDelay)
		if err != nil {
			return nil, nil, err
		}
		defer link.Close()
		for n := range 2 {
			far := purgeWith(n+1, fmt.Sprintf("DB_PORT=%d", link.Port()))
			far.name += ", slow link"
			entries = append(entries, entry{far, (runs + 1) / 2})
		}
	}
	for _, peer := range peers {
		if expected(curves, peer.name, rows) < p.peersFor {
			entries = append(entries, entry{peer, 1})
		}
	}
	results, err := compare(ctx, s, t, entries)
	if err != nil {
		return nil, nil, err
	}
	r.heading(thousands(rows) + " expired rows")
	if link != nil {
		near, err := roundTrip(ctx, s, nil)
		if err != nil {
			return nil, nil, err
		}
		far, err := roundTrip(ctx, s, link)
		if err != nil {
			return nil, nil, err
		}
		r.line(fmt.Sprintf("A round trip takes %s ms, and over the slow link %s ms.", precise(near), precise(far)))
	}
	r.comparison(results)
	for _, m := range results {
		curves = addPoint(curves, m.name, rows, median(m.rate))
		if strings.HasPrefix(m.name, "purge") && rows == p.main {
			r.sum(fmt.Sprintf("rows/s against the plain DELETE, %s rows: %s", thousands(rows), m.name), spread(m.ratio, ratio))
			r.sum("its longest statement, ms", spread(m.longest, decimal))
		}
		if strings.HasPrefix(m.name, "purge") && rows > p.main {
			r.sum(fmt.Sprintf("rows/s against those of %s rows, %s rows: %s", thousands(p.main), thousands(rows), m.name), ratio(median(m.rate)/rate(curves, m.name, p.main)))
		}
	}
	if rows != p.api {
		return curves, nil, nil
	}
	phases, err := besideTheAPI(ctx, s, r, p, t)
	return curves, phases, err
}

// shapes measures tables that are unlike the usual one.
func shapes(ctx context.Context, s *stage, r *report, p plan, usual []curve) ([]curve, error) {
	var curves []curve
	for _, t := range []table{
		{name: "no index on expiration", expired: p.shapes.rows, live: p.shapes.rows / 100, noIndex: true},
		{name: "all expire at one instant", expired: p.shapes.rows, live: p.shapes.rows / 100, same: true},
		{name: "an old snapshot is held open", expired: p.shapes.rows, live: p.shapes.rows / 100, snapshot: true},
		{name: fmt.Sprintf("1 %% of %s rows expired", thousands(p.live)), expired: p.live / 100, live: p.live - p.live/100},
	} {
		if err := s.fill(ctx, t); err != nil {
			return nil, err
		}
		results, err := compare(ctx, s, t, []entry{{plainDelete, p.shapes.runs}, {purgeWith(1), p.shapes.runs}, {purgeWith(2), p.shapes.runs}})
		s.empty()
		if err != nil {
			return nil, err
		}
		r.heading(strings.ToUpper(t.name[:1]) + t.name[1:] + ": " + thousands(t.expired) + " expired rows")
		r.comparison(results)
		curves = addPoint(curves, "purge, "+t.name, t.expired, median(results[1].rate))
		if t.expired == p.main {
			r.sum("rows/s against those of the usual table: "+results[1].name+", "+t.name, ratio(median(results[1].rate)/rate(usual, results[1].name, p.main)))
		}
	}
	return curves, nil
}

// expected answers how long a cleaner takes for so many rows if its time has
// grown with their square since its last point; 0 if it has none.
func expected(curves []curve, name string, rows int) time.Duration {
	i := slices.IndexFunc(curves, func(c curve) bool { return c.name == name })
	if i < 0 {
		return 0
	}
	last := curves[i].points[len(curves[i].points)-1]
	growth := float64(rows) / last.X
	return time.Duration(last.X / last.Y * growth * growth * float64(time.Second))
}

func say(text string) { fmt.Fprintln(os.Stderr, "...", text) }
