package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// stubborn refuses some rows: a batch that holds one is undone.
type stubborn struct {
	timed
	refuses func(row int) bool
}

func (f *stubborn) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *stubborn) Delete(ctx context.Context, b Batch) (Deleted, error) {
	for i := b.Window.(stretch).from; i < b.Window.(stretch).to; i++ {
		if f.refuses(i) {
			return Deleted{}, fmt.Errorf("delete: %w: another table refers to it", ErrRefused)
		}
	}
	return f.timed.Delete(ctx, b)
}

func TestRowsThatAreRefusedStayAndAllOthersGo(t *testing.T) {
	for name, c := range map[string]struct {
		rows, stay int
		refuses    func(int) bool
	}{
		"one":              {4000, 1, func(i int) bool { return i == 1234 }},
		"the first":        {4000, 1, func(i int) bool { return i == 0 }},
		"each of hundreds": {4000, 400, func(i int) bool { return i%10 == 0 }},
		"all":              {50, 50, func(int) bool { return true }},
	} {
		f := &stubborn{timed{fake: fake{rows: c.rows}}, c.refuses}
		r := runAll(t.Context(), f, Policy{BatchSize: 5000, BatchTarget: time.Second}, "a")
		d := r.Databases[0]
		if d.Status != Failed || int(d.DeletedRows) != c.rows-c.stay || f.left() != c.stay {
			t.Errorf("%s: %+v, %d left", name, d, f.left())
		}
		if !strings.Contains(d.Error, fmt.Sprint(c.stay, " row")) || !strings.Contains(d.Error, "refers to it") || d.Findings[0].Code != RefusedRows.Code {
			t.Errorf("%s: %s, %v", name, d.Error, d.Findings)
		}
	}
}

// explained can say what refuses its rows.
type explained struct{ *stubborn }

func (f explained) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (explained) WhatActs(context.Context) (string, error) {
	return "ALTER TABLE x DISABLE TRIGGER y;", nil
}

// Also by a run that ends before it has tried all rows.
func TestRefusedRowsAreToldWithTheStatementThatMends(t *testing.T) {
	for _, ends := range []time.Duration{0, 95 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := explained{&stubborn{timed{fake: fake{rows: 100}, perRow: time.Second}, func(i int) bool { return i == 0 }}}
			d := runAll(t.Context(), f, Policy{BatchSize: 10, MaxDuration: ends, StopBefore: time.Second}, "a").Databases[0]
			stopped := d.StopReason == MaxDuration && d.DeletedRows < 99
			if found := d.Findings; stopped != (ends > 0) || len(found) != 1 || found[0].Code != RefusedRows.Code || !strings.HasSuffix(found[0].Message, "so it ends: ALTER TABLE x DISABLE TRIGGER y;") || strings.Contains(found[0].Message, "all others are deleted") == stopped {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestWhereNearlyAllRowsAreRefusedTheRunGivesUpInTime(t *testing.T) {
	f := &stubborn{timed{fake: fake{rows: 100_000}}, func(int) bool { return true }}
	r := runAll(t.Context(), f, Policy{BatchSize: 5000}, "a")
	if d := r.Databases[0]; d.Status != Failed || !strings.Contains(d.Error, "more than 1,000 rows stay") {
		t.Errorf("%+v", d)
	}
}

// filling is a table that has more rows in a batch than were there when it was cut.
type filling struct {
	fake
	overfull int // so many deletes
	most     []int64
}

func (f *filling) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *filling) Delete(ctx context.Context, b Batch) (Deleted, error) {
	f.most = append(f.most, b.Most)
	if f.overfull > 0 {
		f.overfull--
		return Deleted{}, ErrOverfull
	}
	return f.fake.Delete(ctx, b)
}

func TestABatchThatFilledUpIsCutAnewAndNeverHasMoreThanTheCap(t *testing.T) {
	f := &filling{fake: fake{rows: 100}, overfull: 7}
	if r := runAll(t.Context(), f, Policy{BatchSize: 10}, "a"); r.Status != Complete || r.DeletedRows != 100 || slices.Max(f.most) != 10 || slices.Min(f.most) < 1 {
		t.Errorf("%+v, %v", r, f.most)
	}
	f = &filling{fake: fake{rows: 100}, overfull: 7}
	if r := runAll(t.Context(), f, Policy{BatchSize: 10, MaxRows: 25}, "a"); r.DeletedRows != 25 || r.Databases[0].StopReason != MaxRows {
		t.Errorf("%+v, %v", r, f.most)
	}
}

// family is a table whose first row takes all others with it.
type family struct {
	fake
	stays int // the last row, which does not go alone; 0 is none
}

func (f *family) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *family) Delete(ctx context.Context, b Batch) (Deleted, error) {
	w := b.Window.(stretch)
	if w.from == 0 && int64(f.left()) > b.Most || f.stays > 0 && w.to > f.stays {
		return Deleted{}, ErrOverfull
	}
	return f.fake.Delete(ctx, b)
}

func TestARowThatTakesOthersWithItGoesWhenTheyHaveGone(t *testing.T) {
	f := &family{fake: fake{rows: 100}}
	if r := runAll(t.Context(), f, Policy{BatchSize: 10}, "a"); r.Status != Complete || r.DeletedRows != 100 {
		t.Errorf("%+v", r)
	}
	f = &family{fake: fake{rows: 100}, stays: 99}
	d := runAll(t.Context(), f, Policy{BatchSize: 10}, "a").Databases[0]
	if d.Status != Failed || d.DeletedRows != 98 || !strings.Contains(d.Error, "2 rows stay, and all others are deleted: a row takes more rows") {
		t.Errorf("%+v", d)
	}
}

// dying ends its connection on each delete of one row, and can be connected to at once.
type dying struct {
	fake
	from   int
	logins int
}

func (f *dying) Open(context.Context, string, Table, bool) (Conn, error) {
	f.logins++
	return f, nil
}

func (f *dying) Delete(ctx context.Context, b Batch) (Deleted, error) {
	if b.Window.(stretch).to > f.from {
		return Deleted{}, Uncommitted(fmt.Errorf("delete: %w", ErrLost))
	}
	return f.fake.Delete(ctx, b)
}

func TestAConnectionThatDiesOfTheWorkItselfIsGivenUpSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &dying{fake: fake{rows: 100}, from: 50}
		r := runAll(t.Context(), f, Policy{BatchSize: 10}, "a")
		if d := r.Databases[0]; d.Status != Failed || d.DeletedRows != 50 || f.logins > mostLosses+2 {
			t.Errorf("%d log-ins, %+v", f.logins, d)
		}
	})
}

// changing is another table after some deletes, once.
type changing struct {
	fake
	at     int
	logins int
}

func (f *changing) Open(context.Context, string, Table, bool) (Conn, error) {
	f.logins++
	return f, nil
}

func (f *changing) Delete(ctx context.Context, b Batch) (Deleted, error) {
	if f.at > 0 && f.deletes >= f.at {
		f.at = 0
		return Deleted{}, ErrChanged
	}
	return f.fake.Delete(ctx, b)
}

func TestATableThatChangedIsExaminedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &changing{fake: fake{rows: 100}, at: 3}
		if r := runAll(t.Context(), f, Policy{BatchSize: 10}, "a"); r.Status != Complete || r.DeletedRows != 100 || f.logins != 2 {
			t.Errorf("%d log-ins, %+v", f.logins, r)
		}
	})
}

// taken is lost in mid-run and held by another run from then on.
type taken struct{ *lossy }

func (f taken) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	f.mu.Lock()
	lost := f.deletes >= 4
	f.mu.Unlock()
	if lost && lock {
		return nil, ErrAlreadyRunning
	}
	return f.lossy, nil
}

func TestADatabaseThatAnotherRunTakesAfterALossIsLeftToIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := taken{&lossy{fake: fake{rows: 100}, every: 4, down: 1}}
		r := runAll(t.Context(), f, Policy{BatchSize: 10}, "a")
		if d := r.Databases[0]; d.Status != Partial || d.StopReason != AlreadyRunning || d.DeletedRows != 30 || d.Error != "" {
			t.Errorf("%+v", d)
		}
	})
}

// closing can't be opened any more after some deletes.
type closing struct {
	*lossy
	err error
}

func (f closing) Open(context.Context, string, Table, bool) (Conn, error) {
	if f.lossy.gone > 0 {
		return nil, f.err
	}
	return f.lossy, nil
}

func TestADatabaseThatWasOpenIsNeverSkipped(t *testing.T) {
	for _, kind := range []Kind{NoTable, NoDatabase, NoAccess} {
		synctest.Test(t, func(t *testing.T) {
			f := closing{&lossy{fake: fake{rows: 100}, every: 4, down: 1}, NotPurgeable{Kind: kind, Message: "it is gone"}}
			target := Target{Engine: f, Databases: []Database{{Name: "a", Matched: true}}, Log: slog.New(slog.DiscardHandler)}
			r := Run(t.Context(), target, Policy{Action: Purge, BatchSize: 10}, func(DatabaseResult) {})
			if d := r.Databases[0]; d.Status != Failed || d.DeletedRows != 30 || !strings.Contains(d.Error, "it is gone") {
				t.Errorf("%s: %+v", kind.Code, d)
			}
		})
	}
}

func TestWhatAPatternMatchesAndCanNotBePurgedFailsAndSaysHowToExcludeIt(t *testing.T) {
	for _, kind := range []Kind{NoSelectRight, NoDeleteRight, NoAccess, WrongTable, RowSecurity} {
		target := Target{Engine: unfit{Kind: kind, Message: "grant it"}, Databases: []Database{{Name: "x", Matched: true}}, Log: slog.New(slog.DiscardHandler)}
		r := Run(t.Context(), target, Policy{Action: Purge, BatchSize: 1}, func(DatabaseResult) {})
		const want = "grant it; or exclude the database: add !x to DATABASES"
		if d := r.Databases[0]; d.Status != Failed || !slices.Equal(d.Findings, []Finding{{LevelError, kind.Code, want}}) || d.Error != want {
			t.Errorf("%s: %+v", kind.Code, d)
		}
	}
}

// waking serves nobody for a while.
type waking struct {
	*fake
	from time.Time
	err  error
}

func (f waking) Open(context.Context, string, Table, bool) (Conn, error) {
	if time.Now().Before(f.from) {
		return nil, fmt.Errorf("connect: %w", f.err)
	}
	return f.fake, nil
}

func TestAServerThatDoesNotServeYetIsWaitedFor(t *testing.T) {
	reader := NotPurgeable{Kind: ReaderEndpoint, Message: "take the writer's", Server: true}
	for _, c := range []struct {
		err    error
		takes  time.Duration
		served bool
	}{
		{ErrNotYet, 20 * time.Second, true},
		{ErrNotYet, time.Hour, false},
		{reader, 20 * time.Second, true},
		{reader, time.Hour, false},
		{ErrUnreached, 20 * time.Second, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			start, e := time.Now(), engines{}
			var names []string
			for i := range 20 {
				names = append(names, fmt.Sprint("db", i))
				e[names[i]] = waking{&fake{rows: 10}, start.Add(c.takes), c.err}
			}
			r := runAll(t.Context(), e, Policy{BatchSize: 10, Parallel: 2, ConnectTimeout: 45 * time.Second}, names...)
			took := time.Since(start)
			if (r.Status == Complete) != c.served || took > 45*time.Second+maxBackoff || errors.Is(c.err, ErrUnreached) && took > time.Second {
				t.Errorf("%v for %s: %s after %s", c.err, c.takes, r.Status, took)
			}
		})
	}
}

// restarting is away for a while, in the middle of a run.
type restarting struct {
	*fake
	from, to time.Time
	err      error
}

func (f restarting) away() bool { return !time.Now().Before(f.from) && time.Now().Before(f.to) }

func (f restarting) Open(context.Context, string, Table, bool) (Conn, error) {
	if f.away() {
		return nil, fmt.Errorf("connect: %w", f.err)
	}
	return f, nil
}

func (f restarting) Delete(ctx context.Context, b Batch) (Deleted, error) {
	gone, err := f.fake.Delete(ctx, b)
	if err == nil && f.away() {
		return Deleted{}, Uncommitted(ErrLost)
	}
	return gone, err
}

// Databases that had no turn yet when the server went away wait for it as well: it was
// there before.
func TestAServerThatRestartsInMidRunIsWaitedForByAllDatabases(t *testing.T) {
	for _, c := range []struct {
		err   error
		takes time.Duration
		back  bool
	}{
		{ErrUnreached, 30 * time.Second, true},
		{ErrLost, 30 * time.Second, true},
		{ErrNotYet, 30 * time.Second, true},
		{Also(NotPurgeable{Kind: NoDatabase, Message: "it is being recovered"}, ErrNotYet), 30 * time.Second, true},
		{ErrUnreached, time.Hour, false},
		{ErrNotYet, time.Hour, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			start, e := time.Now(), engines{}
			from := start.Add(61 * time.Second)
			var names []string
			for i := range 20 {
				names = append(names, fmt.Sprint("db", i))
				e[names[i]] = restarting{&fake{rows: 100, takes: time.Second}, from, from.Add(c.takes), c.err}
			}
			r := runAll(t.Context(), e, Policy{BatchSize: 10, Parallel: 2, ConnectTimeout: 45 * time.Second}, names...)
			took := time.Since(start)
			if (r.Status == Complete) != c.back || !c.back && took > 61*time.Second+reconnectTimeout+time.Minute {
				t.Errorf("%v for %s: %s after %s: %v", c.err, c.takes, r.Status, took, r.Err())
			}
		})
	}
}

// As a run begins, too: it stops, is away, and starts.
func TestAServerThatRestartsAsARunBeginsIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &phased{fake: &fake{rows: 10}, errs: []error{ErrNotYet, ErrUnreached, ErrLost, ErrNotYet}}
		r := runAll(t.Context(), f, Policy{BatchSize: 10, ConnectTimeout: 45 * time.Second}, "a")
		if r.Status != Complete || r.DeletedRows != 10 {
			t.Errorf("%+v", r)
		}
		f = &phased{fake: &fake{rows: 10}, errs: []error{ErrNotYet}, last: ErrUnreached}
		start := time.Now()
		r = runAll(t.Context(), f, Policy{BatchSize: 10, ConnectTimeout: 45 * time.Second}, "a", "b", "c")
		if took := time.Since(start); r.Status != Failed || took > 45*time.Second+maxBackoff {
			t.Errorf("%s after %s", r.Status, took)
		}
	})
}

// phased fails to open with one error after the other, and then with the last.
type phased struct {
	*fake
	errs []error
	last error
}

func (f *phased) Open(context.Context, string, Table, bool) (Conn, error) {
	if len(f.errs) == 0 {
		return f.fake, f.last
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, err
}

func TestAServerShortOfConnectionsIsWaitedForAndNoDatabaseFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := engines{}
		var names []string
		for i := range 8 {
			names = append(names, fmt.Sprint("db", i))
			e[names[i]] = waking{&fake{rows: 10}, time.Now().Add(time.Duration(i) * 40 * time.Second), ErrNoSlot}
		}
		p := Policy{BatchSize: 10, Parallel: 8, MaxDuration: 10 * time.Minute}
		if r := runAll(t.Context(), e, p, names...); r.Status != Complete || r.DeletedRows != 80 {
			t.Errorf("%+v", r)
		}
		p.MaxDuration = time.Second
		full := waking{&fake{rows: 10}, time.Now().Add(time.Hour), ErrNoSlot}
		r := runAll(t.Context(), full, p, "a")
		if d := r.Databases[0]; d.Status != Partial || d.StopReason != MaxDuration || d.Findings[0].Code != NoSlot.Code {
			t.Errorf("%+v", d)
		}
	})
}

// vast is a table whose look takes long, and whose windows are spans of time.
type vast struct {
	fake
	indexed bool
	looks   time.Duration
	swept   []Window
	slow    int
}

func (f *vast) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *vast) Facts() Facts {
	return Facts{Now: time.Now().UTC(), Clock: time.Now().UTC(), Indexed: f.indexed}
}

type span struct {
	after, to time.Time
	stretch
}

func (f *vast) Expired(after, to time.Time) Window { return span{after, to, stretch{0, f.rows}} }

func (f *vast) Oldest(ctx context.Context, w Window, _ Trail) (time.Time, Window, error) {
	if sleep(ctx, f.looks); ctx.Err() != nil {
		return time.Time{}, nil, ErrTimeout
	}
	s := w.(span)
	at, found, err := f.fake.Oldest(ctx, s.stretch, Trail{})
	if found != nil {
		s.stretch = found.(stretch)
		found = s
	}
	return at, found, err
}

func (f *vast) Cut(ctx context.Context, w Window, size, batches int) ([]Batch, Window, error) {
	s := w.(span)
	f.swept = append(f.swept, w)
	cut, rest, err := f.fake.Cut(ctx, s.stretch, size, batches)
	if rest != nil {
		s.stretch = rest.(stretch)
		rest = s
	}
	return cut, rest, err
}

func (f *vast) WhySlow(context.Context) ([]Finding, error) {
	f.slow++
	return []Finding{Backlog.Found("an old snapshot")}, nil
}

func TestNoLookIsAGate(t *testing.T) {
	for _, indexed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &vast{fake: fake{rows: 1000, takes: 100 * time.Millisecond}, indexed: indexed, looks: 100 * time.Second}
			r := runAll(t.Context(), f, Policy{BatchSize: 10, MaxDuration: 10 * time.Second}, "a")
			if d := r.Databases[0]; d.StopReason != MaxDuration || d.DeletedRows < 500 || d.OldestExpiredAge() != nil {
				t.Errorf("%+v", d)
			}
			first := f.swept[0].(span)
			if indexed != (first.to.Sub(first.after) == youngest) || indexed != (f.slow > 0) {
				t.Errorf("indexed %t: begins with %v to %v; asked %d times why", indexed, first.after, first.to, f.slow)
			}
		})
	}
}

func TestFindingsAreThoseOfTheLastTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &changing{fake: fake{rows: 100, takes: time.Second}, at: 3}
		e := &telling{changing: f}
		r := runAll(t.Context(), e, Policy{BatchSize: 10}, "a")
		if d := r.Databases[0]; d.Status != Complete || len(d.Findings) != 0 {
			t.Errorf("%+v", d)
		}
	})
}

// telling has a finding until it is opened anew.
type telling struct{ *changing }

func (f *telling) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	_, err := f.changing.Open(ctx, database, table, lock)
	return f, err
}

func (f *telling) Facts() Facts {
	facts := f.changing.Facts()
	if f.logins == 1 {
		facts.Findings = []Finding{MissingExpirationIndex.Found("create it")}
	}
	return facts
}

func TestARunWhoseDatabasesAllLackTheTableFails(t *testing.T) {
	target := Target{Engine: unfit{Kind: NoTable, Message: "there is none"}, Databases: []Database{{Name: "x", Matched: true}, {Name: "y", Matched: true, Closed: "a template"}}, Log: slog.New(slog.DiscardHandler)}
	r := Run(t.Context(), target, Policy{Action: Purge, BatchSize: 1}, func(DatabaseResult) {})
	if err := r.Err(); r.Status != Failed || err == nil || err.Error() != "none of the 2 databases that DATABASES matches has the table" {
		t.Errorf("%s, %v", r.Status, err)
	}
}

func TestABatchThatTakesManyNumbersIsNotAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			others    func(time.Duration) int64
			throttled bool
		}{"nobody": {never, false}, "others": {often, true}} {
			s := newServer(50_000, c.others, "a")
			s.numbers = 500 // a trigger with subtransactions
			r := runAll(t.Context(), s, adapting, "a")
			if d := r.Databases[0]; d.Status != Complete || (d.ThrottledMs > 0) != c.throttled {
				t.Errorf("%s: %+v", name, d)
			}
		}
	})
}

func TestARunSaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		s := newServer(5_000, often, "a")
		target := Target{Engine: s, Databases: Select("a").Resolve(nil, false), Log: slog.New(slog.DiscardHandler), Waiting: func(_, why string) { said = append(said, why) }}
		policy := adapting
		policy.Action = Purge
		r := Run(t.Context(), target, policy, func(DatabaseResult) {})
		if !slices.Contains(said, ThrottleReason) || said[len(said)-1] != "" || r.Databases[0].Findings[0].Code != Throttled.Code {
			t.Errorf("%q, %+v", said, r)
		}
	})
}

// remembering is a table whose server knows later what became of a transaction. The
// acknowledgement of one batch is lost.
type remembering struct {
	fake
	loses     func(f *remembering, b Batch) Deleted // what is known of it
	committed bool
	running   int // times that it is asked while the transaction runs
}

func (f *remembering) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *remembering) Delete(ctx context.Context, b Batch) (Deleted, error) {
	if f.deletes != 3 {
		return f.fake.Delete(ctx, b)
	}
	f.deletes++
	return f.loses(f, b), fmt.Errorf("delete: %w", ErrLost)
}

func (f *remembering) Committed(context.Context, uint64) (bool, error) {
	if f.running > 0 {
		f.running--
		return false, ErrLocked
	}
	return f.committed, nil
}

func (f *remembering) remove(b Batch) {
	for i := b.Window.(stretch).from; i < b.Window.(stretch).to; i++ {
		f.gone[i] = true
	}
}

func TestABatchWithoutAnAcknowledgementCountsForWhatTheServerSaysOfIt(t *testing.T) {
	all := func(known Deleted) func(*remembering, Batch) Deleted {
		return func(f *remembering, b Batch) Deleted { f.remove(b); return known }
	}
	for name, c := range map[string]struct {
		f         *remembering
		deleted   int64
		uncertain bool
	}{
		"committed":                       {&remembering{loses: all(Deleted{Rows: 10, Transaction: 7}), committed: true, running: 3}, 100, false},
		"undone, and others were there":   {&remembering{loses: all(Deleted{Rows: 10, Transaction: 7})}, 90, false},
		"committed, of no row":            {&remembering{loses: func(*remembering, Batch) Deleted { return Deleted{Transaction: 7} }, committed: true}, 100, false},
		"committed, and all are back":     {&remembering{loses: func(*remembering, Batch) Deleted { return Deleted{Rows: 10, Transaction: 7} }, committed: true}, 110, false},
		"committed, of an unknown number": {&remembering{loses: all(Deleted{Rows: -1, Transaction: 7}), committed: true}, 90, true},
		"of a transaction unknown":        {&remembering{loses: all(Deleted{Rows: 10})}, 100, true},
		"of which nothing is known":       {&remembering{loses: all(Deleted{Rows: -1})}, 90, true},
		"of a transaction unknown, there": {&remembering{loses: func(*remembering, Batch) Deleted { return Deleted{Rows: 10} }}, 100, true},
		"of no row":                       {&remembering{loses: func(*remembering, Batch) Deleted { return Deleted{} }}, 100, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c.f.fake.rows = 100
			d := runAll(t.Context(), c.f, Policy{BatchSize: 10}, "a").Databases[0]
			told := slices.ContainsFunc(d.Findings, func(f Finding) bool { return f.Code == CountUncertain.Code })
			if d.Status != Complete || d.DeletedRows != c.deleted || told != c.uncertain {
				t.Errorf("%s: %+v, want %d rows", name, d, c.deleted)
			}
		})
	}
}

// A run that ends before it can ask says so too.
func TestACountThatIsNeverSettledIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lossy{fake: fake{rows: 100}, every: 4, down: 1e6}
		d := runAll(t.Context(), l, Policy{BatchSize: 10}, "a").Databases[0]
		if !slices.ContainsFunc(d.Findings, func(f Finding) bool {
			return f.Code == CountUncertain.Code && strings.HasSuffix(f.Message, "by up to 10")
		}) {
			t.Errorf("%+v", d)
		}
	})
}

// Nor is it waited for by others, with whom it shares the cap: who loses its connection gets
// no other turn until they have ended theirs.
func TestABatchWithoutAnAcknowledgementHoldsUpNoOtherDatabase(t *testing.T) {
	for range 20 { // the order is another one each time
		for _, down := range []int{3, 1e6} {
			synctest.Test(t, func(t *testing.T) {
				a := &lossy{fake: fake{rows: 100}, every: 4, down: down}
				r := runAll(t.Context(), engines{"a": a, "b": &fake{rows: 100}}, Policy{BatchSize: 10, MaxRows: 40}, "a", "b")
				if r.DeletedRows > 40 || r.DeletedRows < 30 || r.Databases[1].Status != Partial {
					t.Errorf("%+v", r)
				}
			})
		}
	}
}

// lockedTable is locked as a whole, and a second look at it takes longer than there is.
type lockedTable struct {
	fake
	looks int
}

func (f *lockedTable) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *lockedTable) Oldest(ctx context.Context, _ Window, _ Trail) (time.Time, Window, error) {
	if f.looks++; f.looks > 1 {
		<-ctx.Done()
		return time.Time{}, nil, ErrTimeout
	}
	return time.Time{}, nil, ErrLocked
}

func TestALockedTableIsToldWhateverEndsTheLastLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lockedTable{fake: fake{rows: 10}}
		target := Target{Engine: f, Tables: []Table{ClientAccessTokens}, Databases: Select("a").Resolve(nil, false), Log: slog.New(slog.DiscardHandler)}
		d := Run(t.Context(), target, Policy{Action: DryRun, BatchSize: 10, MaxDuration: 3 * time.Second}, func(DatabaseResult) {}).Databases[0]
		if d.Status != Partial || len(d.Findings) != 1 || d.Findings[0].Code != LockedRows.Code {
			t.Errorf("%+v", d)
		}
	})
}

// A lock that ends as the run does took its time all the same.
type lockedForARun struct {
	fake
	until time.Time
}

func (f *lockedForARun) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *lockedForARun) Oldest(ctx context.Context, w Window, trail Trail) (time.Time, Window, error) {
	if time.Now().Before(f.until) {
		return time.Time{}, nil, ErrLocked
	}
	return f.fake.Oldest(ctx, w, trail)
}

func (f *lockedForARun) Delete(ctx context.Context, _ Batch) (Deleted, error) {
	<-ctx.Done() // before its lock's time is up
	return Deleted{}, ErrTimeout
}

// lockedUntilLost meets a lock on a row until the time is over, with which its connection ends.
type lockedUntilLost struct{ fake }

func (f *lockedUntilLost) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *lockedUntilLost) Delete(ctx context.Context, _ Batch) (Deleted, error) {
	if deadline, _ := ctx.Deadline(); time.Until(deadline) < lockedRest {
		<-ctx.Done()
		return Deleted{}, Uncommitted(fmt.Errorf("delete: %w", ErrLost))
	}
	return Deleted{}, ErrLocked
}

func TestALockIsToldThoughTheConnectionEndsWithTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := runAll(t.Context(), &lockedUntilLost{fake{rows: 1}}, Policy{BatchSize: 10, MaxDuration: 3 * time.Second}, "a").Databases[0]
		if d.Status != Partial || d.reached || !slices.ContainsFunc(d.Findings, func(f Finding) bool { return f.Code == LockedRows.Code }) {
			t.Errorf("%+v", d)
		}
	})
}

func TestALockThatEndsWithTheRunIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lockedForARun{fake: fake{rows: 10}, until: time.Now().Add(3500 * time.Millisecond)}
		target := Target{Engine: f, Tables: []Table{ClientAccessTokens}, Databases: Select("a").Resolve(nil, false), Log: slog.New(slog.DiscardHandler)}
		d := Run(t.Context(), target, Policy{Action: Purge, BatchSize: 10, MaxDuration: 3 * time.Second, StopBefore: 4 * time.Second}, func(DatabaseResult) {}).Databases[0]
		if d.Status != Partial || !slices.ContainsFunc(d.Findings, func(f Finding) bool { return f.Code == LockedRows.Code }) {
			t.Errorf("%+v", d)
		}
	})
}
