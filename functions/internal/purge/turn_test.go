package purge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a table in memory: so many expired rows, numbered. A Window is a
// stretch of numbers.
type fake struct {
	mu      sync.Mutex
	rows    int
	gone    map[int]bool
	skew    time.Duration
	takes   time.Duration // each delete
	deletes int
	err     error // of every delete
	panics  bool
	locked  bool // as a whole
	opened  int
	most    int // connections that the server gives
}

type stretch struct{ from, to int }

func (s stretch) len() int { return s.to - s.from }

func (f *fake) Open(context.Context, string, Table, bool) (Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opened++; f.most > 0 && f.opened > f.most {
		return nil, errors.New("too many connections")
	}
	return f, nil
}

func (f *fake) Close() {}

func (f *fake) Check(context.Context) ([]Finding, error) { return nil, nil }

func (f *fake) Switch(context.Context, Table) error { return nil }

func (f *fake) Facts() Facts {
	now := time.Now().UTC().Add(f.skew)
	return Facts{Now: now, Clock: now, Indexed: true}
}

func (f *fake) Expired(time.Time, time.Time) Window { return stretch{0, f.rows} }

func (f *fake) Oldest(ctx context.Context, w Window, _ Trail) (time.Time, Window, error) {
	if f.locked {
		sleep(ctx, 2*time.Second) // LOCK_TIMEOUT
		return time.Time{}, nil, ErrLocked
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := w.(stretch).from; i < w.(stretch).to; i++ {
		if !f.gone[i] {
			return time.Now().Add(-time.Hour), stretch{i, w.(stretch).to}, ctx.Err()
		}
	}
	return time.Time{}, nil, ctx.Err()
}

func (f *fake) Count(context.Context, Window) (int64, error) { return int64(f.left()), nil }

func (f *fake) Cut(_ context.Context, w Window, size, batches int) (cut []Batch, rest Window, err error) {
	s := w.(stretch)
	for range batches {
		if s.len() <= size {
			return append(cut, Batch{Window: s}), nil, nil
		}
		cut = append(cut, Batch{Window: stretch{s.from, s.from + size}})
		s.from += size
	}
	return cut, s, nil
}

func (f *fake) Delete(ctx context.Context, b Batch) (Deleted, error) {
	if sleep(ctx, f.takes); ctx.Err() != nil {
		return Deleted{}, ctx.Err()
	}
	if f.locked {
		sleep(ctx, 2*time.Second)
		return Deleted{}, ErrLocked
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deletes++
	if f.panics {
		panic("hunter2")
	}
	if f.err != nil {
		return Deleted{}, f.err
	}
	if f.gone == nil {
		f.gone = map[int]bool{}
	}
	before := len(f.gone)
	for i := b.Window.(stretch).from; i < b.Window.(stretch).to; i++ {
		f.gone[i] = true
	}
	return Deleted{Rows: int64(len(f.gone) - before), Writes: 1}, nil
}

func (f *fake) left() int { return f.rows - len(f.gone) }

// fakes is an engine with several databases.
type fakes map[string]*fake

func (f fakes) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	return f[database].Open(ctx, database, table, lock)
}

func runAll(ctx context.Context, e Engine, p Policy, databases ...string) Result {
	p.Action = Purge
	target := Target{Engine: e, Tables: []Table{ClientAccessTokens}, Databases: Select(databases...).Resolve(nil, false), Log: slog.New(slog.DiscardHandler)}
	return Run(ctx, target, p, func(DatabaseResult) {})
}

func TestTheCapIsSharedAndWhatOneDoesNotUseIsLeftToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Each grant takes all there is, and uses a part of it.
		e := fakes{"a": {rows: 100, takes: time.Second}, "b": {rows: 100, takes: time.Second}, "c": {rows: 100, takes: time.Second}}
		r := runAll(t.Context(), e, Policy{BatchSize: 5000, MaxRows: 1000, Parallel: 3}, "a", "b", "c")
		if r.Status != Complete || r.DeletedRows != 300 {
			t.Errorf("%+v", r)
		}
		e = fakes{"a": {rows: 100, takes: time.Second}, "b": {rows: 100, takes: time.Second}, "c": {rows: 100, takes: time.Second}}
		r = runAll(t.Context(), e, Policy{BatchSize: 30, MaxRows: 250, Parallel: 3}, "a", "b", "c")
		if r.Status != Partial || r.DeletedRows != 250 {
			t.Errorf("%+v", r)
		}
	})
}

func TestAPanicIsThatDatabasesFailureAndItsValueIsNotShown(t *testing.T) {
	e := fakes{"a": {rows: 100, panics: true}, "b": {rows: 100}}
	var log bytes.Buffer
	target := Target{Engine: e, Databases: Select("a", "b").Resolve(nil, false), Log: slog.New(slog.NewTextHandler(&log, nil))}
	r := Run(t.Context(), target, Policy{Action: Purge, BatchSize: 10}, func(DatabaseResult) {})
	if r.Status != Failed || r.Databases[0].Status != Failed || r.Databases[1].Status != Complete {
		t.Errorf("%+v", r)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "panic") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
	if !strings.Contains(log.String(), "stack=") || strings.Contains(log.String(), "hunter2") {
		t.Errorf("logged:\n%s", log.String())
	}
}

// brittle panics when it is closed.
type brittle struct{ *fake }

func (b brittle) Open(context.Context, string, Table, bool) (Conn, error) { return b, nil }

func (brittle) Close() { panic("hunter2") }

func TestAPanicInClosingIsNoEndOfTheProcess(t *testing.T) {
	if r := runAll(t.Context(), brittle{&fake{rows: 20}}, Policy{BatchSize: 10}, "a"); r.Status != Complete || r.DeletedRows != 20 {
		t.Errorf("%+v", r)
	}
}

func TestAnErrorKeepsWhatWasDeletedBeforeIt(t *testing.T) {
	f := &failing{fake: fake{rows: 100}, after: 3}
	r := runAll(t.Context(), f, Policy{BatchSize: 10}, "a")
	if d := r.Databases[0]; d.Status != Failed || d.DeletedRows != 30 || !strings.Contains(r.Err().Error(), "a (30 rows deleted): broken") {
		t.Errorf("%+v", r)
	}
}

// failing fails from some delete on.
type failing struct {
	fake
	after int
}

func (f *failing) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *failing) Delete(ctx context.Context, b Batch) (Deleted, error) {
	f.mu.Lock()
	broken := f.deletes >= f.after
	f.mu.Unlock()
	if broken {
		return Deleted{}, errors.New("broken")
	}
	return f.fake.Delete(ctx, b)
}

func TestAClockThatIsFarOffDeletesNothing(t *testing.T) {
	for _, skew := range []time.Duration{6 * time.Minute, -6 * time.Minute} {
		f := &fake{rows: 5, skew: skew}
		r := runAll(t.Context(), f, Policy{BatchSize: 10}, "a")
		if d := r.Databases[0]; d.Status != Failed || !strings.Contains(d.Error, "clock-skew") || len(d.Findings) != 1 || d.Findings[0].Code != "clock-skew" || f.left() != 5 {
			t.Errorf("%+v", d)
		}
	}
	if r := runAll(t.Context(), &fake{rows: 5, skew: 4 * time.Minute}, Policy{BatchSize: 10}, "a"); r.Status != Complete {
		t.Errorf("%+v", r)
	}
}

func TestASmallBacklogTakesOneConnectionAndALargeOneASecond(t *testing.T) {
	for rows, want := range map[int]int{10 * (prefetch - 1): 1, 10 * (prefetch + 1): 2} {
		f := &fake{rows: rows}
		if r := runAll(t.Context(), f, Policy{BatchSize: 10, Parallel: 2}, "a"); r.Status != Complete || f.opened != want {
			t.Errorf("%d rows: %d connections, want %d; %+v", rows, f.opened, want, r)
		}
	}
}

func TestWithoutASecondConnectionOneDoes(t *testing.T) {
	f := &fake{rows: 1000, most: 1}
	if r := runAll(t.Context(), f, Policy{BatchSize: 10, Parallel: 2}, "a"); r.Status != Complete || r.DeletedRows != 1000 {
		t.Errorf("%+v", r)
	}
}

func TestRestsBetweenBatchesAndTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if r := runAll(t.Context(), &fake{rows: 30}, Policy{BatchSize: 10, Pause: time.Minute}, "a"); r.Status != Complete || time.Since(start) != 2*time.Minute {
			t.Errorf("%+v after %s", r, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start = time.Now()
		r := runAll(ctx, &fake{rows: 1000, takes: 7 * time.Second}, Policy{BatchSize: 10, StopBefore: 10 * time.Second}, "a")
		if d := r.Databases[0]; d.StopReason != Deadline || d.DeletedRows != 70 || time.Since(start) != 50*time.Second {
			t.Errorf("%+v after %s", d, time.Since(start))
		}
		start = time.Now()
		r = runAll(t.Context(), &fake{rows: 1000, takes: 7 * time.Second}, Policy{BatchSize: 10, MaxDuration: 20 * time.Second}, "a")
		if d := r.Databases[0]; d.StopReason != MaxDuration || d.DeletedRows != 20 || time.Since(start) != 20*time.Second {
			t.Errorf("%+v after %s", d, time.Since(start))
		}
	})
}

func TestInstantsAreRFC3339InUTC(t *testing.T) {
	tokyo := time.FixedZone("", 9*3600)
	for want, in := range map[string]time.Time{
		`"2026-11-23T14:00:00Z"`:        time.Date(2026, 11, 23, 23, 0, 0, 0, tokyo),
		`"2026-11-23T14:00:00.000001Z"`: time.Date(2026, 11, 23, 14, 0, 0, 1000, time.UTC),
		`"0000-01-01T00:00:00Z"`:        time.Date(-4712, 1, 1, 0, 0, 0, 0, time.UTC),
		`"9999-12-31T23:59:59Z"`:        time.Date(294276, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := json.Marshal(instant(in)); err != nil || string(got) != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
	old := DatabaseResult{Cutoff: instant(time.Now()), OldestLeft: instant(time.Date(-4712, 1, 1, 0, 0, 0, 0, time.UTC)), LeftKnown: true}
	if *old.OldestExpiredAge() < 200*365*24*time.Hour {
		t.Errorf("age %s", *old.OldestExpiredAge())
	}
}

func TestWithTooLittleTimeEveryDatabaseMakesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Six databases, a minute of work each; two minutes of time for each run,
		// one database at a time.
		e := fakes{}
		var names []string
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			e[name] = &fake{rows: 60, takes: time.Second}
			names = append(names, name)
		}
		runAt := func(run int) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if r := runAll(ctx, e, Policy{BatchSize: 1}, names...); run < 3 && r.Status != Partial {
				t.Errorf("run %d: %+v", run, r)
			}
		}
		runAt(1)
		for name, f := range e {
			if f.left() > 41 { // a batch may fall on the end of a turn
				t.Errorf("after one run %s has %d rows of 60 left", name, f.left())
			}
		}
		for run := 2; run <= 5; run++ {
			runAt(run)
		}
		for name, f := range e {
			if f.left() != 0 {
				t.Errorf("after five runs %s has %d rows left", name, f.left())
			}
		}
	})
}

// distant takes some time to open, or hangs.
type distant struct {
	*fake
	opens time.Duration
}

func (d distant) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	if sleep(ctx, d.opens); ctx.Err() != nil {
		return nil, fmt.Errorf("connect: %w: no answer in time", ErrLost)
	}
	return d.fake.Open(ctx, database, table, lock)
}

func TestTooLittleTimeIsNoFailureOfTheDatabasesThatWereNotReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := engines{}
		var names []string
		for i := range 60 {
			names = append(names, fmt.Sprint("db", i))
			e[names[i]] = distant{&fake{rows: 10}, 50 * time.Millisecond}
		}
		for _, longest := range []time.Duration{time.Nanosecond, 20 * time.Millisecond, 300 * time.Millisecond} {
			r := runAll(t.Context(), e, Policy{BatchSize: 10, MaxDuration: longest, Parallel: 4}, names...)
			if r.Status != Partial || r.Err() != nil || len(r.Databases[0].Findings) > 0 {
				t.Errorf("%s: %s, %v", longest, r.Status, r.Err())
			}
		}
	})
}

func TestADatabaseThatHangsTakesNoMoreThanItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := engines{"hangs": distant{&fake{}, time.Hour}}
		names := []string{"hangs"}
		for i := range 5 {
			names = append(names, fmt.Sprint("db", i))
			e[names[i+1]] = distant{&fake{rows: 10, takes: 100 * time.Millisecond}, 50 * time.Millisecond}
		}
		for range 10 { // the order is another one each time
			start := time.Now()
			r := runAll(t.Context(), e, Policy{BatchSize: 1, MaxDuration: 12 * time.Second, Parallel: 1}, names...)
			if d := r.Databases[0]; d.Status != Failed || !strings.Contains(d.Error, "no answer") {
				t.Errorf("%+v", d)
			}
			for _, d := range r.Databases[1:] {
				if d.Status != Complete {
					t.Errorf("after %s: %+v", time.Since(start), d)
				}
			}
			for _, name := range names[1:] {
				e[name].(distant).gone = nil
			}
		}
	})
}

// lingering is claimed by the first attempt to open it, for some seconds, although
// that takes too long.
type lingering struct {
	*fake
	tries *int
	since *time.Time
}

func (l lingering) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	if *l.tries++; *l.tries == 1 {
		*l.since = time.Now()
		return distant{l.fake, time.Hour}.Open(ctx, database, table, lock)
	}
	if lock && time.Since(*l.since) < 8*time.Second {
		return nil, ErrAlreadyRunning
	}
	return l.fake.Open(ctx, database, table, lock)
}

func TestASessionOfItsOwnThatWasCutIsNoOtherRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tried := false
		for !tried { // until it is not the last in order, which has all the time
			a := lingering{&fake{rows: 5}, new(int), new(time.Time)}
			e := engines{"a": a, "b": &fake{rows: 5, takes: time.Second}}
			r := runAll(t.Context(), e, Policy{BatchSize: 10, MaxDuration: time.Minute, Parallel: 1}, "a", "b")
			if tried = *a.tries > 1; tried && (r.Status != Complete || r.DeletedRows != 10) {
				t.Errorf("%+v", r)
			}
		}
	})
}

// held is a database that another run holds.
type held struct{ *fake }

func (h held) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	if lock {
		return nil, ErrAlreadyRunning
	}
	return h.fake.Open(ctx, database, table, lock)
}

func TestWhatAnotherRunHoldsAndLeavesIsSeen(t *testing.T) {
	r := runAll(t.Context(), held{&fake{rows: 3}}, Policy{BatchSize: 10}, "a")
	if d := r.Databases[0]; d.Status != Partial || d.StopReason != AlreadyRunning || *d.OldestExpiredAge() < 59*time.Minute {
		t.Errorf("%+v", d)
	}
	r = runAll(t.Context(), held{&fake{}}, Policy{BatchSize: 10}, "a")
	if d := r.Databases[0]; d.StopReason != AlreadyRunning || *d.OldestExpiredAge() != 0 {
		t.Errorf("%+v", d)
	}
}

func TestTheCutOffIsTheClockLessTheGracePeriodAndTheAgeIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runAll(t.Context(), &fake{rows: 20}, Policy{BatchSize: 10, MaxRows: 10, Grace: 30 * time.Minute, StopBefore: time.Minute}, "a")
		if d := r.Databases[0]; !d.Cutoff.Equal(time.Now().Add(-30*time.Minute)) || *d.OldestExpiredAge() != time.Hour {
			t.Errorf("%+v", d)
		}
	})
}

func TestASlowDatabaseGetsTheTimeThatTheOthersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := fakes{"slow": {rows: 80, takes: time.Second}, "b": {rows: 1}, "c": {rows: 1}, "d": {rows: 1}}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		r := runAll(ctx, e, Policy{BatchSize: 1}, "slow", "b", "c", "d")
		if r.Status != Complete || r.DeletedRows != 83 || r.Databases[0].DeletedRows != 80 {
			t.Errorf("%+v", r)
		}
	})
}

func TestOnlyWhatAPatternMatchedIsSkipped(t *testing.T) {
	for matched, want := range map[bool]Status{true: Skipped, false: Failed} {
		target := Target{Engine: unfit{Kind: NoTable, Message: "there is none"}, Databases: []Database{{Name: "x", Matched: matched}}, Log: slog.New(slog.DiscardHandler)}
		r := Run(t.Context(), target, Policy{Action: Purge, BatchSize: 1}, func(DatabaseResult) {})
		level := map[Status]string{Skipped: "info", Failed: "error"}[want]
		if d := r.Databases[0]; d.Status != want || !slices.Equal(d.Findings, []Finding{{level, "no-table", "there is none"}}) || r.Findings[0].Databases != 1 {
			t.Errorf("%+v", d)
		}
	}
}

func TestAWholeServerThatIsUnfitIsNotSkipped(t *testing.T) {
	target := Target{Engine: unfit{Kind: ReaderEndpoint, Message: "take the writer's", Server: true}, Databases: []Database{{Name: "x", Matched: true}}, Log: slog.New(slog.DiscardHandler)}
	r := Run(t.Context(), target, Policy{Action: Purge, BatchSize: 1}, func(DatabaseResult) {})
	if r.Status != Failed || !slices.Equal(r.Databases[0].Findings, []Finding{ReaderEndpoint.Found("take the writer's")}) {
		t.Errorf("%+v", r)
	}
}

type unfit NotPurgeable

func (u unfit) Open(context.Context, string, Table, bool) (Conn, error) { return nil, NotPurgeable(u) }

func TestTheWorstFindingsStandFirst(t *testing.T) {
	var r DatabaseResult
	for _, f := range []Finding{{LevelInfo, "a", ""}, {LevelWarning, "b", ""}, {LevelInfo, "c", ""}, {LevelError, "d", ""}, {LevelWarning, "e", ""}, {LevelError, "f", ""}} {
		r.find(f)
	}
	order := func(findings []Finding) (codes string) {
		for _, f := range findings {
			codes += f.Code
		}
		return codes
	}
	if got := order(r.Findings); got != "dfbeac" {
		t.Error(got)
	}
	// Of a code that has several levels, the worst counts.
	result := Result{Databases: make([]DatabaseResult, 2)}
	result.add(0, DatabaseResult{Findings: []Finding{{LevelWarning, "b", ""}, {LevelInfo, "a", ""}}})
	result.add(1, DatabaseResult{Findings: []Finding{{LevelError, "d", ""}, {LevelWarning, "a", "worse"}, {LevelInfo, "c", ""}}})
	var got []Finding
	for _, g := range result.Findings {
		got = append(got, g.Finding)
	}
	if order(got) != "dbac" || result.Findings[2].Databases != 2 || got[2].Message != "worse" {
		t.Errorf("%+v", result.Findings)
	}
}

func TestFailuresWithOneCauseStandTogether(t *testing.T) {
	r := Result{Databases: []DatabaseResult{
		{Database: "a", Status: Failed, Error: "x"},
		{Database: "b", Status: Complete},
		{Database: "c", Status: Failed, Error: "y", DeletedRows: 7},
		{Database: "d", Status: Failed, Error: "x"},
	}}
	const want = "3 of 4 databases failed: a (0 rows deleted), d (0 rows deleted): x; c (7 rows deleted): y"
	if err := r.Err(); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// lossy loses its connection now and then, and is not reachable for some tries
// after that.
type lossy struct {
	fake
	down  int // tries to connect that fail after a loss
	every int // deletes from one loss to the next; 0 is none
	gone  int
}

func (l *lossy) Open(context.Context, string, Table, bool) (Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone > 0 {
		l.gone--
		return nil, fmt.Errorf("connect: %w", ErrLost)
	}
	return l, nil
}

func (l *lossy) Delete(ctx context.Context, b Batch) (Deleted, error) {
	l.mu.Lock()
	if l.every > 0 && l.deletes%l.every == l.every-1 {
		l.deletes++
		l.gone = l.down
	}
	lost := l.gone > 0
	l.mu.Unlock()
	if lost {
		return Deleted{Rows: -1}, fmt.Errorf("delete: %w", ErrLost)
	}
	return l.fake.Delete(ctx, b)
}

func TestALostConnectionIsOpenedAnewWithinTheTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lossy{fake: fake{rows: 100}, every: 4, down: 5}
		r := runAll(t.Context(), l, Policy{BatchSize: 10}, "a")
		if d := r.Databases[0]; d.Status != Complete || d.DeletedRows != 100 || d.Error != "" {
			t.Errorf("%+v", d)
		}
		// One that does not come back is given up, and in time.
		l = &lossy{fake: fake{rows: 100}, every: 4, down: 1e6}
		start := time.Now()
		r = runAll(t.Context(), l, Policy{BatchSize: 10}, "a")
		if d := r.Databases[0]; d.Status != Failed || d.DeletedRows != 30 || time.Since(start) < reconnectTimeout || time.Since(start) > reconnectTimeout+maxBackoff {
			t.Errorf("%+v after %s", d, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		l = &lossy{fake: fake{rows: 100}, every: 4, down: 1e6}
		r = runAll(ctx, l, Policy{BatchSize: 10, StopBefore: 10 * time.Second}, "a")
		if d := r.Databases[0]; d.Status != Failed || d.DeletedRows != 30 || ctx.Err() != nil {
			t.Errorf("%+v", d)
		}
		// One that was never there is an error at once.
		l = &lossy{gone: 1e6}
		start = time.Now()
		if r = runAll(t.Context(), l, Policy{BatchSize: 10}, "a"); r.Status != Failed || time.Since(start) != 0 {
			t.Errorf("%+v after %s", r, time.Since(start))
		}
	})
}

// hurried is a database whose server, once for all of them, gives up just before
// the turn's end.
type hurried struct {
	fake
	gaveUp *bool
}

func (h *hurried) Oldest(ctx context.Context, w Window, _ Trail) (time.Time, Window, error) {
	if *h.gaveUp {
		return h.fake.Oldest(ctx, w, Trail{})
	}
	*h.gaveUp = true
	deadline, _ := ctx.Deadline()
	time.Sleep(time.Until(deadline) - 10*time.Millisecond)
	return time.Time{}, nil, fmt.Errorf("too slow: %w", ErrTimeout)
}

type hurriedOnes map[string]*hurried

func (e hurriedOnes) Open(_ context.Context, database string, _ Table, _ bool) (Conn, error) {
	return e[database], nil
}

func TestADatabaseWhoseServerGivesUpInItsTurnGetsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		gaveUp := new(bool)
		tables := hurriedOnes{"a": {fake{rows: 10}, gaveUp}, "b": {fake{rows: 10}, gaveUp}}
		if r := runAll(ctx, tables, Policy{BatchSize: 5}, "a", "b"); r.Status != Complete || r.DeletedRows != 20 {
			t.Errorf("%+v", r)
		}
	})
}
