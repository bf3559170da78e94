package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

const (
	// mostRows is from how many databases on those with nothing to tell stand in one
	// list of names, so that the others stay on the screen.
	mostRows = 20
	// leastLines is how many lines such names get, however much else there is to tell.
	leastLines = 3
	// mostNames and mostTexts are how many databases a finding names, and in how many
	// words it is told, where they differ from one database to the next.
	mostNames = 3
	mostTexts = 3
	// mostInfos is how many texts of how things are may be told of one database; where its
	// tables have more, -v tells.
	mostInfos = 12
)

// view is how people see a result.
type view struct {
	columns int  // of the terminal; 0 is without a bound
	rows    int  // of the terminal; 0 is one as is usual
	verbose bool // also what is as it should be
	colour  bool
}

// write writes result: the databases, what was found, and at the end, where it is seen
// first, what came of it.
func (v view) write(w io.Writer, result purge.Result) {
	var above, below strings.Builder
	if len(result.Databases) > 0 {
		fmt.Fprintf(&above, "%s on %s at %s\n\n", result.Action, result.Databases[0].Engine, result.Databases[0].Server)
	}
	quiet := v.databases(&above, result)
	for _, n := range v.notes(result) {
		fmt.Fprintln(&below)
		v.wrap(&below, v.paint(n.level, n.about), "  ")
		for _, text := range n.texts {
			v.wrap(&below, "  "+text, "  ")
		}
	}
	fmt.Fprintln(&below)
	v.wrap(&below, v.paint(string(result.Status), string(result.Status))+": "+summary(result), "  ")

	io.WriteString(w, above.String()) //nolint:errcheck // nobody is left to tell
	if quiet != nil {
		rest := strings.Count(above.String()+below.String(), "\n") + 1 // and the prompt
		v.list(w, quiet, max(leastLines, cmp.Or(v.rows, 24)-rest))
	}
	io.WriteString(w, below.String()) //nolint:errcheck // nobody is left to tell
}

// databases writes a row for each database, and returns the names of those that only a
// list has. Names stand last: they may be of any length.
func (v view) databases(w io.Writer, result purge.Result) (quiet []string) {
	heads, cells := tableColumns(result.Action)
	var rows []string
	row := func(status string, cells []string, name string) {
		rows = append(rows, strings.Join(append(append([]string{status}, cells...), name), "\t"))
	}
	each := v.verbose || countTables(result) <= mostRows
	for _, d := range result.Databases {
		if !v.verbose && len(result.Databases) > mostRows && isQuiet(d) {
			quiet = append(quiet, purge.Printable(d.Database))
			continue
		}
		row(string(d.Status), cells(d), purge.Printable(d.Database))
		for _, table := range d.Tables {
			if each {
				row(string(table.Status), cells(table), "  "+table.Table)
			}
		}
	}
	if rows != nil {
		if n := len(result.Databases); n > 1 {
			row(string(result.Status), cells(sum(result)), fmt.Sprintf("all %s databases", purge.Grouped(n)))
		}
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(table, "STATUS\t%s\tDATABASE\n%s\n", strings.Join(heads, "\t"), strings.Join(rows, "\n"))
		table.Flush() //nolint:errcheck // of w
	}
	if quiet != nil {
		if rows != nil {
			fmt.Fprintln(w)
		}
		what := ", nothing had expired,"
		if result.Action == purge.Check {
			what = ""
		}
		fmt.Fprintf(w, "complete%s in %s databases (-v has a row for each):\n", what, purge.Grouped(len(quiet)))
	}
	return quiet
}

// countTables returns how many tables there are in all databases.
func countTables(result purge.Result) (n int) {
	for _, d := range result.Databases {
		n += max(1, len(d.Tables))
	}
	return n
}

// isQuiet tells whether nothing is to be said of a database.
func isQuiet(d purge.DatabaseResult) bool {
	return d.Status == purge.Complete && d.DeletedRows == 0 && (d.ExpiredRows == nil || *d.ExpiredRows == 0)
}

// sum adds up what the databases have.
func sum(result purge.Result) purge.DatabaseResult {
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
	return total
}

// tableColumns returns what a row tells of an action, between status and name.
func tableColumns(action purge.Action) (heads []string, cells func(purge.DatabaseResult) []string) {
	switch action {
	case purge.Purge:
		return []string{"DELETED", "BATCHES", "TIME"}, func(d purge.DatabaseResult) []string {
			return []string{purge.Grouped(d.DeletedRows), purge.Grouped(d.Batches), duration(d.DurationMs)}
		}
	case purge.DryRun:
		return []string{"EXPIRED", "OLDEST", "TIME"}, func(d purge.DatabaseResult) []string {
			return []string{counted(d.ExpiredRows), oldest(d), duration(d.DurationMs)}
		}
	default:
		return []string{"TIME"}, func(d purge.DatabaseResult) []string { return []string{duration(d.DurationMs)} }
	}
}

// oldest writes the time in the oldest expired row, with its zone where that is certain.
func oldest(d purge.DatabaseResult) string {
	switch {
	case d.OldestExpiration == nil:
		return ""
	case d.Local:
		return d.OldestExpiration.Format("2006-01-02 15:04")
	default:
		return d.OldestExpiration.UTC().Format("2006-01-02 15:04 UTC")
	}
}

// counted writes a number of rows; nil is none that is known.
func counted(n *int64) string {
	if n == nil {
		return "not counted"
	}
	return purge.Grouped(*n)
}

// rows writes how many there are.
func rows(n int64) string {
	if n == 1 {
		return "1 row"
	}
	return purge.Grouped(n) + " rows"
}

// list writes names side by side, in at most so many lines.
func (v view) list(w io.Writer, names []string, lines int) {
	width := 0
	for _, name := range names {
		width = max(width, len([]rune(name))+2)
	}
	inLine := max(1, cmp.Or(v.columns, 80)/width)
	more := 0
	if len(names) > lines*inLine { // the last line says how many more
		more = len(names) - (lines-1)*inLine
		names = names[:len(names)-more]
	}
	for line := range slices.Chunk(names, inLine) {
		text := " "
		for _, name := range line {
			text += fmt.Sprintf(" %-*s", width-1, name)
		}
		fmt.Fprintln(w, strings.TrimRight(text, " "))
	}
	if more > 0 {
		fmt.Fprintf(w, "  and %s more\n", purge.Grouped(more))
	}
}

// note is something to be read below the table.
type note struct {
	level, about string
	texts        []string
}

// group is one thing that was found, or went wrong, in some databases.
type group struct {
	level, code string
	databases   []string
	texts       []string // told of each of them
}

// groups returns why databases are not complete, then what was found, the worst first.
func groups(result purge.Result) (groups []*group) {
	add := func(database, level, code, text string) {
		at := slices.IndexFunc(groups, func(g *group) bool { return g.level == level && g.code == code })
		if at < 0 {
			at, groups = len(groups), append(groups, &group{level: level, code: code})
		}
		g := groups[at]
		g.databases, g.texts = append(g.databases, purge.Printable(database)), append(g.texts, purge.Printable(text))
	}
	for _, d := range result.Databases {
		switch d.Status {
		case purge.Failed:
			add(d.Database, string(purge.Failed), "", d.Error)
		case purge.Partial:
			add(d.Database, string(purge.Partial), string(d.StopReason), partialReason[d.StopReason])
		}
	}
	for _, level := range purge.Levels {
		for _, d := range result.Databases {
			for _, f := range d.Findings {
				if f.Level == level && !isTold(d, f) {
					add(d.Database, f.Level, f.Code, f.Message)
				}
			}
		}
	}
	return groups
}

// isTold tells whether a finding is what a database failed for, which is told already.
func isTold(d purge.DatabaseResult, f purge.Finding) bool {
	message := f.Message
	for _, table := range d.Tables {
		message = strings.TrimPrefix(message, table.Table+": ")
	}
	return strings.Contains(d.Error, message)
}

// notes returns what is to be read below the table, each thing once and with the
// databases that it is about.
func (v view) notes(result purge.Result) (notes []note) {
	all := groups(result)
	several := len(result.Databases) > 1 || countInfos(all) > mostInfos
	var fine []string
	for _, g := range all {
		switch {
		case g.level != purge.LevelInfo || several && v.verbose:
			notes = append(notes, v.note(g, len(result.Databases)))
		case several:
			fine = append(fine, g.code)
		default:
			for _, text := range g.texts {
				fine = append(fine, g.code+": "+text)
			}
		}
	}
	switch {
	case fine == nil:
	case several:
		notes = append(notes, note{purge.LevelInfo, v.inLine("info: ", fine, " (-v tells)"), nil})
	default:
		notes = append(notes, note{purge.LevelInfo, purge.LevelInfo, fine})
	}
	return notes
}

// countInfos returns how many texts there are that nobody needs to act on.
func countInfos(groups []*group) (n int) {
	for _, g := range groups {
		if g.level == purge.LevelInfo {
			n += len(g.texts)
		}
	}
	return n
}

// inLine names as many as there is room for in one line, between what goes before and
// after them.
func (v view) inLine(before string, names []string, after string) string {
	text := before + strings.Join(names, ", ") + after
	for n := len(names) - 1; n > 0 && v.columns > 0 && width(text) > v.columns; n-- {
		text = fmt.Sprintf("%s%s and %d more%s", before, strings.Join(names[:n], ", "), len(names)-n, after)
	}
	return text
}

// note tells a group, and with several databases in which of all.
func (v view) note(g *group, all int) note {
	n := note{g.level, strings.TrimSpace(g.level + " " + g.code), nil}
	same := !slices.ContainsFunc(g.texts, func(text string) bool { return text != g.texts[0] })
	switch {
	case all == 1:
		n.texts = g.texts
	case same:
		n.about += " in " + some(g.databases, all, v.verbose)
		n.texts = g.texts[:1]
	default:
		n.about += fmt.Sprintf(" in %s databases", purge.Grouped(len(g.databases)))
		for i, text := range g.texts {
			if i == mostTexts && !v.verbose {
				n.texts = append(n.texts, fmt.Sprintf("and %s more like these (-v tells)", purge.Grouped(len(g.texts)-i)))
				break
			}
			n.texts = append(n.texts, g.databases[i]+": "+text)
		}
	}
	return n
}

// some names the first few of all, or with verbose each.
func some(databases []string, all int, verbose bool) string {
	more := len(databases) - mostNames
	switch {
	case more <= 1 || verbose:
	case len(databases) == all:
		return fmt.Sprintf("all %s databases", purge.Grouped(all))
	default:
		databases = append(slices.Clone(databases[:mostNames]), purge.Grouped(more)+" more databases")
	}
	return strings.Join(databases, ", ")
}

var partialReason = map[purge.StopReason]string{
	purge.Deadline:       "the time was over; the next run goes on",
	purge.MaxDuration:    "the time was over (-max-duration); the next run goes on",
	purge.MaxRows:        "the cap on rows was reached; the next run goes on",
	purge.Canceled:       "interrupted; what is deleted is committed, the next run goes on",
	purge.AlreadyRunning: "another run holds the database; it does the work",
}

// summary says in one line what came of a run, and what to do.
func summary(result purge.Result) string {
	of := func(status purge.Status) (n int) {
		for _, d := range result.Databases {
			if d.Status == status {
				n++
			}
		}
		return n
	}
	did := map[purge.Action]string{
		purge.Purge:  rows(result.DeletedRows) + " deleted",
		purge.DryRun: "not all rows were counted",
		purge.Check:  "a purge will work",
	}[result.Action]
	if expired := sum(result).ExpiredRows; result.Action == purge.DryRun && expired != nil {
		did = "a purge would delete " + rows(*expired)
	}
	switch all := len(result.Databases); {
	case result.Status == purge.Failed && of(purge.Failed) == 0:
		return result.Err().Error()
	case result.Status == purge.Failed && result.Action == purge.Check:
		return fmt.Sprintf("a purge would fail in %s; mend what is said above", outOf(of(purge.Failed), all))
	case result.Status == purge.Failed:
		return fmt.Sprintf("%s; %s; mend what is said above", outOf(of(purge.Failed), all), did)
	case result.Status == purge.Partial:
		return fmt.Sprintf("%s not done; %s; run it again", outOf(of(purge.Partial), all), did)
	case result.Action == purge.Purge && result.DeletedRows == 0:
		return "nothing had expired"
	case result.Action == purge.Purge:
		return did + ", and nothing expired is left"
	default:
		return did
	}
}

func outOf(n, all int) string {
	if all == 1 {
		return "1 database"
	}
	return fmt.Sprintf("%s of %s databases", purge.Grouped(n), purge.Grouped(all))
}

// wrap writes text in lines of at most so many columns, all but the first indented.
func (v view) wrap(w io.Writer, text, indent string) {
	line := ""
	for _, word := range strings.SplitAfter(text, " ") {
		if v.columns > 0 && strings.TrimSpace(line) != "" && width(line)+width(strings.TrimRight(word, " ")) > v.columns {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line = indent
		}
		line += word
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
}

// The colours of a terminal, by what they are for.
var colours = map[string]string{
	string(purge.Complete): "\x1b[32m",
	string(purge.Partial):  "\x1b[33m", purge.LevelWarning: "\x1b[33m",
	string(purge.Failed): "\x1b[31m", purge.LevelError: "\x1b[31m",
}

const plain = "\x1b[0m"

// paint gives text the colour of a status or level, where there are colours.
func (v view) paint(as, text string) string {
	if !v.colour || colours[as] == "" {
		return text
	}
	return colours[as] + text + plain
}

// width returns how many columns text takes.
func width(text string) int {
	for _, colour := range colours {
		text = strings.ReplaceAll(text, colour, "")
	}
	return len([]rune(strings.ReplaceAll(text, plain, "")))
}

func duration(ms int64) string {
	if ms < 10_000 {
		return fmt.Sprintf("%.2fs", float64(ms)/1000)
	}
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
}
