package purge

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Status is how a run ended, for one database or all.
type Status string

// The statuses.
const (
	Complete Status = "complete" // nothing expired at the cut-off is left
	Partial  Status = "partial"  // the run stopped first; the next one goes on
	Failed   Status = "failed"
	Skipped  Status = "skipped" // only a pattern matched it, and it can't be purged; never that of all
)

// StopReason is why a database's run ended.
type StopReason string

// The reasons.
const (
	Drained        StopReason = "drained"
	Deadline       StopReason = "deadline"
	MaxRows        StopReason = "max-rows"
	MaxDuration    StopReason = "max-duration"
	Canceled       StopReason = "canceled"
	AlreadyRunning StopReason = "already-running"
	DryRunDone     StopReason = "dry-run"
	CheckDone      StopReason = "check"
	Errored        StopReason = "error"
	SkippedReason  StopReason = "skipped"
)

// Result is what a run did.
type Result struct {
	Status      Status           `json:"status"`
	Action      Action           `json:"action"`
	DeletedRows int64            `json:"deletedRows"`
	DurationMs  int64            `json:"durationMs"`
	Findings    []Group          `json:"findings,omitempty"` // of all databases
	Databases   []DatabaseResult `json:"databases"`
}

// AllSkipped tells whether the run had nothing to work on.
func (r Result) AllSkipped() bool {
	return len(r.Databases) > 0 && !slices.ContainsFunc(r.Databases, func(d DatabaseResult) bool { return d.Status != Skipped })
}

// Group is a finding, and in how many databases it was made.
type Group struct {
	Finding       // the worst of them, of the first database that has it
	Databases int `json:"databases"`
}

// add counts one database in.
func (r *Result) add(i int, d DatabaseResult) {
	r.Databases[i] = d
	r.DeletedRows += d.DeletedRows
	if d.Status == Failed || d.Status == Partial && r.Status == Complete {
		r.Status = d.Status
	}
	for _, f := range d.Findings {
		at := slices.IndexFunc(r.Findings, func(g Group) bool { return g.Code == f.Code })
		if at < 0 {
			at, r.Findings = len(r.Findings), append(r.Findings, Group{Finding: f})
		}
		g := &r.Findings[at]
		if g.Databases++; bySeverity(f, g.Finding) < 0 {
			g.Finding = f
		}
	}
	slices.SortStableFunc(r.Findings, func(a, b Group) int { return bySeverity(a.Finding, b.Finding) })
}

// DatabaseResult is what a run did in one database.
type DatabaseResult struct {
	Database         string     `json:"database"`
	Table            string     `json:"table,omitempty"` // one of several in a database
	Engine           string     `json:"engine"`
	Server           string     `json:"server"`
	Status           Status     `json:"status"`
	StopReason       StopReason `json:"stopReason"`
	Error            string     `json:"error,omitempty"`
	DeletedRows      int64      `json:"deletedRows"`
	ExpiredRows      *int64     `json:"expiredRows,omitempty"` // a dry run: what a purge would delete; nil where it is not known
	Batches          int        `json:"batches"`               // statements that deleted rows
	Cutoff           *Instant   `json:"cutoff,omitempty"`
	OldestExpiration *Instant   `json:"oldestExpiration,omitempty"` // of the rows found
	DurationMs       int64      `json:"durationMs"`
	ThrottledMs      int64      `json:"throttledMs,omitempty"` // that it waited because others write to the server
	Findings         []Finding  `json:"findings"`
	// Tables is what happened in each of the tables where more than one was asked for.
	// The database's own numbers are their sums.
	Tables []DatabaseResult `json:"tables,omitempty"`

	// Local tells that the zone of cut-off and oldest expiration is not certain.
	Local bool `json:"-"`
	// Grace is how long before the database's clock the cut-off lies.
	Grace time.Duration `json:"-"`
	// OldestLeft is what the last look found: the expiration of the oldest expired
	// row still there, or nil for none. It counts where LeftKnown.
	OldestLeft *Instant `json:"-"`
	LeftKnown  bool     `json:"-"`

	reached bool // the server, and the database
}

// OldestExpiredAge returns how long ago, when the run began, the oldest row that it
// left had expired: 0 when a look proved that it left none, nil where that is not
// known.
func (d DatabaseResult) OldestExpiredAge() *time.Duration {
	switch {
	case d.Tables != nil:
		return oldestAge(d.Tables)
	case !d.LeftKnown || d.Cutoff == nil:
		return nil
	case d.OldestLeft == nil:
		return new(time.Duration)
	}
	// In whole seconds a difference of any two dates fits; Sub would saturate.
	seconds := d.Cutoff.Add(d.Grace).Unix() - d.OldestLeft.Unix()
	const most = int64(1<<63-1) / int64(time.Second)
	return new(time.Duration(max(0, min(seconds, most))) * time.Second)
}

// oldestAge returns the greatest age of all tables, nil where one is not known.
func oldestAge(tables []DatabaseResult) *time.Duration {
	oldest := new(time.Duration)
	for _, table := range tables {
		age := table.OldestExpiredAge()
		if age == nil {
			return nil
		}
		*oldest = max(*oldest, *age)
	}
	return oldest
}

// column writes what the column of expirations holds. Where its zone is not certain, none
// is told.
func (d DatabaseResult) column(at time.Time) string {
	if d.Local {
		return strings.TrimSuffix(instant(at).String(), "Z")
	}
	return instant(at).String()
}

// looked takes in what a look found: the oldest expired row, or nil for none.
func (d *DatabaseResult) looked(oldest *Instant) { d.OldestLeft, d.LeftKnown = oldest, true }

// Instant is a time in UTC that writes itself in RFC 3339, ending in Z, also
// where a database holds a date that RFC 3339 has no form for.
type Instant struct{ time.Time }

var (
	firstInstant = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	lastInstant  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

func instant(t time.Time) *Instant { return &Instant{t.UTC()} }

// MarshalText writes the instant; years outside of 0 to 9999 become the
// nearest instant inside.
func (i Instant) MarshalText() ([]byte, error) {
	t := i.UTC()
	if t.Before(firstInstant) {
		t = firstInstant
	} else if t.After(lastInstant) {
		t = lastInstant
	}
	return t.AppendFormat(nil, time.RFC3339Nano), nil
}

// MarshalJSON writes the instant as a JSON string.
func (i Instant) MarshalJSON() ([]byte, error) {
	text, err := i.MarshalText()
	return append(append([]byte{'"'}, text...), '"'), err
}

// String writes the instant as MarshalText does.
func (i Instant) String() string {
	text, _ := i.MarshalText()
	return string(text)
}

// mostMessage is how long the message of a failed run may be, in bytes; mostCauses is
// how many causes it tells.
const (
	mostMessage = 7 << 10
	mostCauses  = 20
)

// failure is a cause, and the databases that failed for it.
type failure struct {
	cause     string
	databases []DatabaseResult
}

// Err returns nil, or an error that names each failed database, its cause and
// the rows that had left it by then. Causes that differ in the database's name alone
// are told once. Where not all has room, it says how much is missing.
func (r Result) Err() error {
	var failures []*failure
	byCause := map[string]*failure{}
	failed := 0
	for _, d := range r.Databases {
		if d.Status != Failed {
			continue
		}
		failed++
		const itself = "\x00"
		alike := strings.ReplaceAll(d.Error, d.Database, itself)
		f := byCause[alike]
		if f == nil {
			f = &failure{cause: d.Error}
			byCause[alike], failures = f, append(failures, f)
		}
		f.databases = append(f.databases, d)
	}
	switch {
	case r.AllSkipped():
		return fmt.Errorf("none of the %s databases that DATABASES matches has the table", Grouped(len(r.Databases)))
	case failed == 0:
		return nil
	}
	told := failures[:min(len(failures), mostCauses)]
	parts := make([]string, 0, len(told)+1)
	for _, f := range told {
		parts = append(parts, f.tell(mostMessage/len(told)))
	}
	if more := len(failures) - len(told); more > 0 {
		parts = append(parts, fmt.Sprintf("and %s causes more", Grouped(more)))
	}
	return fmt.Errorf("%s of %s databases failed: %s", Grouped(failed), Grouped(len(r.Databases)), strings.Join(parts, "; "))
}

// tell says in about so many bytes which databases failed, and why.
func (f failure) tell(most int) string {
	cause := f.cause
	if len(f.databases) > 1 && f.databases[1].Error != cause {
		cause = strings.ReplaceAll(cause, f.databases[0].Database, "...")
	}
	cause = shorten(Printable(cause), most/2)
	var b strings.Builder
	rows := int64(0)
	for i, d := range f.databases {
		name := fmt.Sprintf("%s (%s rows deleted)", shorten(Printable(d.Database), most/8), Grouped(d.DeletedRows))
		if i > 0 && b.Len()+len(name)+len(cause) > most-most/8 {
			for _, d := range f.databases[i:] {
				rows += d.DeletedRows
			}
			fmt.Fprintf(&b, ", and %s more (%s rows deleted)", Grouped(len(f.databases)-i), Grouped(rows))
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name)
	}
	return b.String() + ": " + cause
}

// shorten returns text in at most so many bytes.
func shorten(text string, most int) string {
	const more = "..."
	if len(text) <= most {
		return text
	}
	end := max(0, most-len(more))
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + more
}

// Grouped writes a number as people read it: 1,234,567.
func Grouped[N int | int64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Printable returns text with its control characters escaped, as names may hold some
// that a terminal would obey.
func Printable(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

func (d *DatabaseResult) end(status Status, reason StopReason) {
	d.Status, d.StopReason, d.Error = status, reason, ""
}

// find adds a finding, unless there is one of its kind.
func (d *DatabaseResult) find(f Finding) {
	if slices.ContainsFunc(d.Findings, func(have Finding) bool { return have.Code == f.Code }) {
		return
	}
	d.Findings = append(d.Findings, f)
	slices.SortStableFunc(d.Findings, bySeverity)
}
