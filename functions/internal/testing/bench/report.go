package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// What the bench writes of BENCHMARKS.md lies between these.
const (
	written   = "<!-- make bench wrote from here -->"
	untilHere = "<!-- to here -->"

	pictured = `
![Rows deleted a second, by the size of the backlog](functions/internal/testing/bench/rows.svg)

![The slowest of the API's requests in each tenth of a second](functions/internal/testing/bench/latency.svg)
`
)

// report is Markdown, printed as it comes; but what it comes to goes first in the file.
type report struct {
	machine string
	inShort [][]string
	text    strings.Builder
}

func (r *report) print(text string) {
	fmt.Print(text)
	r.text.WriteString(text)
}

func (r *report) heading(text string) { r.print("\n### " + text + "\n") }

func (r *report) line(text string) { r.print("\n" + text + "\n") }

func (r *report) table(header []string, rows [][]string) { r.print(tabulate(header, rows)) }

// sum adds a line to what it all comes to.
func (r *report) sum(what, value string) { r.inShort = append(r.inShort, []string{what, value}) }

// tabulate pads the columns, for they are read in terminals too. The first is
// text, the others are numbers.
func tabulate(header []string, rows [][]string) string {
	var b strings.Builder
	rule := make([]string, len(header))
	width := make([]int, len(header))
	for column := range header {
		for _, row := range append(rows, header) {
			width[column] = max(width[column], utf8.RuneCountInString(row[column]))
		}
		rule[column] = strings.Repeat("-", width[column]-1) + ":"
	}
	rule[0] = strings.Repeat("-", width[0])
	b.WriteString("\n")
	for i, row := range append([][]string{header, rule}, rows...) {
		for column, cell := range row {
			space := strings.Repeat(" ", width[column]-utf8.RuneCountInString(cell))
			if column == 0 || i == 1 {
				cell += space
			} else {
				cell = space + cell
			}
			b.WriteString("| " + cell + " ")
		}
		b.WriteString("|\n")
	}
	return b.String()
}

// tellMachine tells what the numbers hold for.
func (r *report) tellMachine(ctx context.Context, s *stage) error {
	var version string
	if err := s.admin.QueryRow(ctx, "SELECT current_setting('server_version')").Scan(&version); err != nil {
		return err
	}
	r.machine = fmt.Sprintf("%s: PostgreSQL %s with default settings but 512 MB of shared buffers, no autovacuum and no checkpoint during a run; "+
		"%s, %d processors, %s/%s, server and clients on the same. Medians; in brackets the least and the most.\n",
		time.Now().UTC().Format(time.DateOnly), version, processor(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	fmt.Print(r.machine)
	return nil
}

// processor answers what Linux calls it.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "a machine"
}

func (r *report) comparison(results []measured) {
	var rows [][]string
	for _, m := range results {
		memory := ""
		if len(m.memory) > 0 {
			memory = spread(m.memory, decimal)
		}
		rows = append(rows, []string{m.name, strconv.Itoa(len(m.rate)), spread(m.rate, rounded), spread(m.ratio, ratio), spread(m.longest, decimal), spread(m.pages, decimal), memory})
	}
	r.table([]string{"", "runs", "rows/s", "against the plain DELETE", "longest statement, ms", "pages looked at for each row", "function's memory, MB"}, rows)
}

func (r *report) latencies(rounds [][]phase) {
	var rows [][]string
	for i, p := range rounds[0] {
		for _, insert := range []bool{true, false} {
			var p50, p99, most, against []float64
			requests := 0
			for _, round := range rounds {
				idle, now := round[0].during(insert), round[i].during(insert)
				if len(idle) == 0 || len(now) == 0 {
					continue
				}
				requests += len(now)
				p50, p99 = append(p50, quantile(now, 0.5)), append(p99, quantile(now, 0.99))
				most, against = append(most, now[len(now)-1]), append(against, quantile(now, 0.99)/quantile(idle, 0.99))
			}
			name := p.name + ": look up"
			if insert {
				name = p.name + ": insert"
			}
			if requests > 0 {
				if strings.HasPrefix(p.name, "purge") {
					r.sum("the API's p99 against idle, "+name, spread(against, ratio))
				}
				rows = append(rows, []string{name, thousands(requests), spread(p50, precise), spread(p99, precise), spread(most, precise), spread(against, ratio)})
			}
		}
	}
	r.table([]string{"", "requests", "p50, ms", "p99, ms", "longest, ms", "p99 against idle"}, rows)
}

// write puts the report between the markers of dir's BENCHMARKS.md and draws
// the pictures. Without a directory it draws them all the same, for nobody.
func (r *report) write(dir string, curves []curve, phases []phase) error {
	inShort := "\n### In short\n" + tabulate([]string{"", "median (least to most)"}, r.inShort)
	fmt.Print(inShort)
	pictures, err := render(curves, phases)
	if err != nil || dir == "" {
		return err
	}
	for name, svg := range pictures {
		if err := os.WriteFile(filepath.Join(dir, "functions", "internal", "testing", "bench", name), svg, 0o644); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, "BENCHMARKS.md")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), written+"\n")
	_, after, closed := strings.Cut(rest, untilHere)
	if !ok || !closed {
		return errors.New("BENCHMARKS.md lacks the markers between which the bench writes")
	}
	return os.WriteFile(path, []byte(before+written+"\n"+r.machine+inShort+pictured+r.text.String()+"\n"+untilHere+after), 0o644)
}

// spread writes the median, and the least and most of several in brackets.
func spread(values []float64, format func(float64) string) string {
	if len(values) == 1 {
		return format(values[0])
	}
	return fmt.Sprintf("%s (%s to %s)", format(median(values)), format(slices.Min(values)), format(slices.Max(values)))
}

// rounded keeps three digits, as many as a rate is good for.
func rounded(v float64) string {
	unit := math.Pow(10, max(0, math.Floor(math.Log10(v))-2))
	return thousands(int(math.Round(v/unit) * unit))
}

func ratio(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }

func precise(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }

func decimal(v float64) string {
	if v >= 100 {
		return thousands(int(math.Round(v)))
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}
