package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// writeTable writes a result for people, in at most so many columns; 0 is without
// a bound. Names and words that are longer than that go over it.
func writeTable(w io.Writer, result purge.Result, columns int) {
	heads, cells := tableColumns(result.Action)
	rows := make([][]string, 0, len(result.Databases))
	for _, d := range result.Databases {
		rows = append(rows, append([]string{d.Database, string(d.Status)}, cells(d)...))
	}
	if len(rows) > 0 {
		fmt.Fprintf(w, "%s on %s at %s\n\n", result.Action, result.Databases[0].Engine, result.Databases[0].Server)
	}
	if len(rows) > 1 {
		total := purge.DatabaseResult{DurationMs: result.DurationMs, DeletedRows: result.DeletedRows, ExpiredRows: new(int64)}
		for _, d := range result.Databases {
			total.Batches += d.Batches
			switch {
			case d.Status == purge.Skipped:
			case d.ExpiredRows == nil:
				total.ExpiredRows = nil // a sum of what is not known is not known
			case total.ExpiredRows != nil:
				*total.ExpiredRows += *d.ExpiredRows
			}
		}
		rows = append(rows, append([]string{fmt.Sprintf("%d databases", len(rows)), string(result.Status)}, cells(total)...))
	}
	writeRows(w, append([][]string{append([]string{"DATABASE", "STATUS"}, heads...)}, rows...), columns)
	if notes := notes(result); len(notes) > 0 {
		fmt.Fprintln(w)
		for _, n := range notes {
			wrap(w, n.about, "  ", columns)
			wrap(w, "  "+n.text, "  ", columns)
		}
	}
}

// tableColumns returns what a row tells of an action, besides name and status.
func tableColumns(action purge.Action) (heads []string, cells func(purge.DatabaseResult) []string) {
	switch action {
	case purge.Purge:
		return []string{"DELETED", "BATCHES", "TIME"}, func(d purge.DatabaseResult) []string {
			return []string{thousands(d.DeletedRows), thousands(int64(d.Batches)), seconds(d.DurationMs)}
		}
	case purge.DryRun:
		return []string{"EXPIRED", "OLDEST (UTC)", "TIME"}, func(d purge.DatabaseResult) []string {
			oldest := ""
			if d.OldestExpiration != nil {
				oldest = d.OldestExpiration.UTC().Format("2006-01-02 15:04")
			}
			expired := "not counted"
			if d.ExpiredRows != nil {
				expired = thousands(*d.ExpiredRows)
			}
			return []string{expired, oldest, seconds(d.DurationMs)}
		}
	default:
		return []string{"TIME"}, func(d purge.DatabaseResult) []string { return []string{seconds(d.DurationMs)} }
	}
}

// writeRows aligns the first two columns to the left and the others to the
// right. Where a name leaves no room for the rest, it stands in a line of its own.
func writeRows(w io.Writer, rows [][]string, columns int) {
	widths := make([]int, len(rows[0]))
	rest := 0
	for i := range widths {
		for _, row := range rows {
			widths[i] = max(widths[i], len([]rune(row[i])))
		}
		if i > 0 {
			rest += 2 + widths[i]
		}
	}
	if columns > 0 {
		widths[0] = min(widths[0], max(len("DATABASE"), columns-rest))
	}
	for _, row := range rows {
		name := row[0]
		if len([]rune(name)) > widths[0] {
			fmt.Fprintln(w, name)
			name = ""
		}
		line := fmt.Sprintf("%-*s  %-*s", widths[0], name, widths[1], row[1])
		for i := 2; i < len(row); i++ {
			line += fmt.Sprintf("  %*s", widths[i], row[i])
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

// note is something to be read below the table, and what it is about.
type note struct{ about, text string }

// notes returns why databases are not complete, then what was found, the worst
// first, each text once and with the databases that it is about, where there are
// several.
func notes(result purge.Result) []note {
	var order []note
	databases := map[note][]string{}
	add := func(database string, n note) {
		if databases[n] == nil {
			order = append(order, n)
		}
		databases[n] = append(databases[n], database)
	}
	for _, d := range result.Databases {
		switch d.Status {
		case purge.Failed:
			add(d.Database, note{"failed", d.Error})
		case purge.Partial:
			add(d.Database, note{"partial " + string(d.StopReason), partialReason[d.StopReason]})
		}
	}
	for _, level := range purge.Levels {
		for _, d := range result.Databases {
			for _, f := range d.Findings {
				if f.Level == level && !strings.Contains(d.Error, f.Message) { // else it was told already
					add(d.Database, note{f.Level + " " + f.Code, f.Message})
				}
			}
		}
	}
	if len(result.Databases) == 1 {
		return order
	}
	for i, n := range order {
		about := databases[n]
		const most = 3
		if more := len(about) - most; more > 0 {
			about = append(about[:most:most], fmt.Sprintf("%d more", more))
		}
		order[i].about += " in " + strings.Join(about, ", ")
	}
	return order
}

var partialReason = map[purge.StopReason]string{
	purge.Deadline:       "the time was over; the next run goes on",
	purge.MaxDuration:    "the time was over (-max-duration); the next run goes on",
	purge.MaxRows:        "the cap on rows was reached; the next run goes on",
	purge.Canceled:       "interrupted; what is deleted is committed, the next run goes on",
	purge.AlreadyRunning: "another run holds the database; it does the work",
}

// wrap writes text in lines of at most so many columns, all but the first
// indented.
func wrap(w io.Writer, text, indent string, columns int) {
	line := ""
	for _, word := range strings.SplitAfter(text, " ") {
		if columns > 0 && strings.TrimSpace(line) != "" && len([]rune(line))+len([]rune(strings.TrimRight(word, " "))) > columns {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line = indent
		}
		line += word
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
}

func seconds(ms int64) string {
	if ms < 10_000 {
		return fmt.Sprintf("%.2fs", float64(ms)/1000)
	}
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
