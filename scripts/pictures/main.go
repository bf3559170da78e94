// Command pictures draws those of the documentation, as SVG in docs/pictures:
//
//	go generate ./scripts/pictures
//
// What make bench measured is read from docs/benchmarks.md. The dashboard is drawn
// from the widgets in template.yaml, with sample data, and says so.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

//go:generate go run . ../..

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pictures ROOT")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	drawn, err := draw(root)
	if err != nil {
		return err
	}
	dir := filepath.Join(root, "docs", "pictures")
	err = os.MkdirAll(dir, 0o755)
	for name, svg := range drawn {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(svg), 0o644))
	}
	return err
}

// draw returns all pictures by the names of their files.
func draw(root string) (map[string]string, error) {
	measured, err := os.ReadFile(filepath.Join(root, "docs", "benchmarks.md"))
	if err != nil {
		return nil, err
	}
	template, err := os.ReadFile(filepath.Join(root, "template.yaml"))
	if err != nil {
		return nil, err
	}
	board, err := dashboard(string(template))
	if err != nil {
		return nil, fmt.Errorf("template.yaml: %w", err)
	}
	b := read(string(measured))
	drawn := map[string]string{"longest.svg": longest(b), "api.svg": api(b), "rows.svg": rows(b), "dashboard.svg": board}
	if err := b.err(); err != nil {
		return nil, fmt.Errorf("docs/benchmarks.md: %w", err)
	}
	return drawn, nil
}

// The colours are told apart by whoever sees few, and on any screen.
const (
	blue, sky, orange, grey, red = "#0072b2", "#56b4e9", "#e69f00", "#8c8c8c", "#c0392b"
	ink, faint                   = "#1f2328", "#d8dee4"
)

func longest(b *bench) string {
	return bars("Longest statement while a million expired rows go", "milliseconds; a lock on rows is held no longer than that", []string{""}, []series{
		{"one plain DELETE", orange, []float64{b.of("longest-ms", "Purge 1M", 0)}},
		{"this purge", blue, []float64{b.of("longest-ms", "Purge 1M", 1)}},
		{"with two connections", sky, []float64{b.of("longest-ms", "Purge 1M", 2)}},
	}, func(ms float64) string { return fmt.Sprintf("%.0f ms", ms) })
}

func api(b *bench) string {
	groups := []string{}
	all := []series{{"nothing else", grey, nil}, {"this purge", blue, nil}, {"one plain DELETE", orange, nil}}
	for _, request := range []struct{ unit, says string }{{"issue", "issue a token"}, {"look-up", "look one up"}} {
		for _, quantile := range []struct{ unit, says string }{{"p50", "p50"}, {"p99", "p99"}, {"worst", "worst"}} {
			unit := request.unit + "-" + quantile.unit + "-µs"
			if quantile.unit == "worst" && !b.has(unit) {
				continue // measured since bench knows it
			}
			groups = append(groups, request.says+", "+quantile.says)
			for i, row := range []string{"API idle", "API purge", "API plain"} {
				all[i].values = append(all[i].values, b.of(unit, row, 0)/1000)
			}
		}
	}
	return bars("How long the API takes while this runs beside it", "milliseconds, at 400 requests a second; half of them take p50 at most, 99 of 100 take p99 at most", groups, all,
		func(ms float64) string { return fmt.Sprintf("%.1f ms", ms) })
}

func rows(b *bench) string {
	sizes := []struct{ row, says string }{{"Purge 50k", "50 thousand expired rows"}, {"Purge 250k", "250 thousand"}, {"Purge 1M", "1 million"}}
	all := []series{{"one plain DELETE", orange, nil}, {"this purge", blue, nil}, {"with two connections", sky, nil}}
	groups := []string{}
	for _, size := range sizes {
		groups = append(groups, size.says)
		for i := range all {
			all[i].values = append(all[i].values, b.of("rows/s", size.row, i)/1e6)
		}
	}
	groups = append(groups, "4 million")
	all[0].values = append(all[0].values, b.of("rows/s", "Growth plain-4M", 0)/1e6)
	all[1].values = append(all[1].values, b.of("rows/s", "Growth purge-4M", 0)/1e6)
	return bars("Rows deleted in a second, by the size of the backlog", "million rows a second; a small backlog is mostly connecting", groups, all,
		func(m float64) string { return fmt.Sprintf("%.1f million", m) })
}
