package purge

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestConcurrencyIsThatManyDeletesAtOnceAndNoMore(t *testing.T) {
	for _, concurrency := range []int{0, 1, 2, 5} {
		synctest.Test(t, func(t *testing.T) {
			f := &crowd{fake: fake{rows: 2000, takes: time.Second}}
			r := runAll(t.Context(), f, Policy{BatchSize: 10, Concurrency: concurrency, Parallel: 2}, "a")
			n := max(1, concurrency)
			if d := r.Databases[0]; d.Status != Complete || d.DeletedRows != 2000 || d.Batches != 200 || f.deletes != 200 {
				t.Errorf("%d: %+v in %d deletes", n, d, f.deletes)
			}
			// The first eight batches go one by one.
			if took, want := r.DurationMs, int64((200-8)/n*1000+8000); took > want+1000 || took < want/2 {
				t.Errorf("%d: %d ms, want about %d", n, took, want)
			}
			if f.most != n || f.opened != n+1 {
				t.Errorf("%d: %d deletes at once over %d connections", n, f.most, f.opened)
			}
		})
	}
}

func TestThereAreNeverMoreConnectionsThanDatabasesAtOnceTimesConcurrency(t *testing.T) {
	for _, parallel := range []int{1, 2, 4} {
		for _, concurrency := range []int{1, 3} {
			synctest.Test(t, func(t *testing.T) {
				f := &crowd{fake: fake{rows: 300, takes: time.Second}}
				tables := engines{}
				var names []string
				for _, name := range []string{"a", "b", "c", "d", "e"} {
					tables[name], names = f, append(names, name)
				}
				runAll(t.Context(), tables, Policy{BatchSize: 1, Concurrency: concurrency, Parallel: parallel}, names...)
				if f.mostOpen != parallel*concurrency {
					t.Errorf("%d connections with %d databases at once and a concurrency of %d", f.mostOpen, parallel, concurrency)
				}
			})
		}
	}
}

// crowd counts the deletes and connections at once, and gives each connection a
// table of its own.
type crowd struct {
	fake
	now, most      int
	open, mostOpen int
}

type member struct{ *crowd }

func (c *crowd) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	if _, err := c.fake.Open(ctx, database, table, lock); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	c.mostOpen = max(c.mostOpen, c.open)
	return member{c}, nil
}

func (m member) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open--
}

func (m member) Delete(ctx context.Context, b Batch) (Deleted, error) {
	m.mu.Lock()
	m.now++
	m.crowd.most = max(m.crowd.most, m.now)
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.now--
		m.mu.Unlock()
	}()
	return m.fake.Delete(ctx, b)
}

func TestWithConcurrencyEveryCountStaysExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{rows: 2000, takes: time.Second}
		r := runAll(t.Context(), f, Policy{BatchSize: 10, Concurrency: 3, MaxRows: 1234}, "a")
		if d := r.Databases[0]; d.Status != Partial || d.StopReason != MaxRows || d.DeletedRows != 1234 || f.left() != 766 {
			t.Errorf("%+v, %d left", d, f.left())
		}
		f = &fake{rows: 2000, takes: time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r = runAll(ctx, f, Policy{BatchSize: 10, Concurrency: 3, StopBefore: 10 * time.Second}, "a")
		if d := r.Databases[0]; d.Status != Partial || d.StopReason != Deadline || int(d.DeletedRows) != 2000-f.left() || d.DeletedRows < 500 {
			t.Errorf("%+v, %d left", d, f.left())
		}
		p := &failing{fake: fake{rows: 2000, takes: time.Second}, after: 50}
		r = runAll(t.Context(), p, Policy{BatchSize: 10, Concurrency: 3}, "a")
		if d := r.Databases[0]; d.Status != Failed || int(d.DeletedRows) != 2000-p.left() {
			t.Errorf("%+v, %d left", d, p.left())
		}
	})
}

// clumsy panics when it cuts a batch, from some row on.
type clumsy struct {
	fake
	from int
}

func (f *clumsy) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *clumsy) Cut(ctx context.Context, w Window, size, _ int) ([]Batch, Window, error) {
	if w.(stretch).from >= f.from {
		panic("hunter2")
	}
	return f.fake.Cut(ctx, w, size, 1)
}

func TestAPanicInCuttingKeepsTheCountAndGivesBackTheCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &clumsy{fake{rows: 100, takes: time.Second}, 20}, &fake{rows: 100, takes: 5 * time.Second}
		r := runAll(t.Context(), engines{"a": a, "b": b}, Policy{BatchSize: 10, MaxRows: 130, Parallel: 2}, "a", "b")
		if d := r.Databases[0]; d.Status != Failed || d.DeletedRows != 20 || a.left() != 80 {
			t.Errorf("%+v, %d left", d, a.left())
		}
		if d := r.Databases[1]; d.Status != Complete || d.DeletedRows != 100 {
			t.Errorf("%+v", d)
		}
	})
}

// engines is one for each database.
type engines map[string]Engine

func (e engines) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	return e[database].Open(ctx, database, table, lock)
}

func TestAServerWithFewConnectionsToSpareIsNoFailure(t *testing.T) {
	for most := 1; most < 5; most++ {
		f := &fake{rows: 2000, most: most}
		r := runAll(t.Context(), f, Policy{BatchSize: 10, Concurrency: 4}, "a")
		if r.Status != Complete || r.DeletedRows != 2000 {
			t.Errorf("%d: %+v", most, r)
		}
	}
}

// timed takes some time for each row, and keeps the sizes of its batches.
type timed struct {
	fake
	perRow   time.Duration
	batches  []int
	locked   int           // after so many batches one meets a lock; 0 is none
	slowly   time.Duration // for each row from slowFrom on
	slowFrom int
}

func (f *timed) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *timed) Delete(ctx context.Context, b Batch) (Deleted, error) {
	if f.locked > 0 && len(f.batches) >= f.locked {
		f.locked = 0
		return Deleted{}, ErrLocked
	}
	rows := b.Window.(stretch).len()
	f.batches = append(f.batches, rows)
	perRow := f.perRow
	if f.slowly > 0 && b.Window.(stretch).from >= f.slowFrom {
		perRow = f.slowly
	}
	sleep(ctx, time.Duration(rows)*perRow)
	return f.fake.Delete(ctx, b)
}

func TestBatchesTakeTheTimeAimedAt(t *testing.T) {
	for name, c := range map[string]struct {
		perRow   time.Duration
		most     int
		from, to int // sizes once it has settled
	}{
		"fast":               {time.Microsecond, 5000, 5000, 5000},
		"slow":               {50 * time.Microsecond, 5000, 500, 2000},
		"very slow":          {10 * time.Millisecond, 5000, 2, 10},
		"with a low ceiling": {100 * time.Microsecond, 40, 40, 40},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &timed{fake: fake{rows: 60 * c.most}, perRow: c.perRow}
			r := runAll(t.Context(), f, Policy{BatchSize: c.most, BatchTarget: 50 * time.Millisecond}, "a")
			if r.Status != Complete || r.DeletedRows != int64(60*c.most) || slices.Max(f.batches) > c.most || f.batches[0] != min(c.most, minBatchSize) {
				t.Errorf("%s: %+v", name, r)
			}
			settled := f.batches[len(f.batches)/2 : len(f.batches)-1]
			if slices.Min(settled) < c.from || slices.Max(settled) > c.to {
				t.Errorf("%s: batches of %d to %d, want %d to %d", name, slices.Min(settled), slices.Max(settled), c.from, c.to)
			}
		})
	}
}

func TestBatchesThatWereCutAheadAreCutAgainWhereTheyTakeTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &timed{fake: fake{rows: 200_000}, perRow: time.Microsecond, slowly: time.Millisecond, slowFrom: 100_000}
		r := runAll(t.Context(), f, Policy{BatchSize: 5000, BatchTarget: time.Second}, "a")
		first := slices.Index(f.batches, 5000) + 100_000/5000
		if r.Status != Complete || r.DeletedRows != 200_000 || first < 20 || slices.Max(f.batches[first+maxPrefetched:]) > 2000 {
			t.Errorf("%s, %d rows, batches of %v", r.Status, r.DeletedRows, f.batches)
		}
	})
}

// slow gives up a statement that would take longer than seven eighths of the time
// left, as a server does.
type slow struct{ timed }

func (f *slow) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *slow) Delete(ctx context.Context, b Batch) (Deleted, error) {
	deadline, _ := ctx.Deadline()
	limit := time.Until(deadline) / 8 * 7
	if takes := time.Duration(b.Window.(stretch).len()) * f.perRow; takes > limit {
		sleep(ctx, limit)
		return Deleted{}, ErrTimeout
	}
	return f.timed.Delete(ctx, b)
}

func TestARunTooShortForOneBatchDeletesSomethingAllTheSame(t *testing.T) {
	for _, target := range []time.Duration{0, 50 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			f := &slow{timed{fake: fake{rows: 15_000}, perRow: time.Millisecond}}
			r := runAll(t.Context(), f, Policy{BatchSize: 5000, BatchTarget: target, MaxDuration: 5 * time.Second}, "a")
			if d := r.Databases[0]; d.StopReason != MaxDuration || d.DeletedRows < 100 || int(d.DeletedRows) != 15_000-f.left() {
				t.Errorf("%+v, %d left", d, f.left())
			}
		})
	}
}

func TestRowsAreNotSlowWhereTheLastBatchRanOutOfTime(t *testing.T) {
	for perRow, told := range map[time.Duration]bool{2 * time.Millisecond: false, 3 * time.Millisecond: false, 20 * time.Millisecond: true} {
		synctest.Test(t, func(t *testing.T) {
			f := &slow{timed{fake: fake{rows: 15_000}, perRow: perRow}}
			d := runAll(t.Context(), f, Policy{BatchSize: 5000, BatchTarget: 50 * time.Millisecond, MaxDuration: 5 * time.Second}, "a").Databases[0]
			if d.StopReason != MaxDuration || slices.ContainsFunc(d.Findings, func(f Finding) bool { return f.Code == SlowRows.Code }) != told {
				t.Errorf("%s a row: %+v, batches of %v", perRow, d, f.batches)
			}
		})
	}
}

func TestBatchesGrowBackAndShrinkAtOnceAtALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &timed{fake: fake{rows: 40_000}, perRow: time.Microsecond, locked: 10}
		runAll(t.Context(), f, Policy{BatchSize: 1000, BatchTarget: 50 * time.Millisecond}, "a")
		half := slices.Index(f.batches, 500)
		if half < 10 || half > 10+2*prefetch || slices.Index(f.batches[half:], 1000) < 0 {
			t.Errorf("%v", f.batches)
		}
	})
	s := newSizer(Policy{BatchSize: 1000})
	s.Observe(1000, 1000, time.Hour, nil)
	s.Observe(1000, 0, time.Hour, ErrLocked)
	if s.Next() != 1000 {
		t.Errorf("without a target, %d rows", s.Next())
	}
	if s.Observe(1000, 0, time.Hour, ErrTimeout); s.Next() != 100 {
		t.Errorf("without a target, %d rows where there was no time for more", s.Next())
	}
	s = newSizer(Policy{BatchSize: 1000, BatchTarget: time.Second})
	s.Observe(100, 100, time.Millisecond, nil)
	s.Observe(400, 400, time.Millisecond, nil)
	s.Observe(1000, 1000, 3*time.Second, nil)
	s.Observe(1000, 1000, 3*time.Second, nil) // cut before
	if s.Observe(1000, 0, 0, ErrLocked); s.Next() != 333 {
		t.Errorf("a third once, then %d rows", s.Next())
	}
}

func TestABatchIsNotMadeSmallerForATimeThatItsRowsDoNotTake(t *testing.T) {
	s := newSizer(Policy{BatchSize: 100, BatchTarget: 50 * time.Millisecond})
	for range 20 {
		size := s.Next()
		s.Observe(size, int64(size), 300*time.Millisecond, nil) // of each statement
	}
	if s.Next() < 50 {
		t.Errorf("%d rows", s.Next())
	}
	for range 20 {
		size := s.Next()
		s.Observe(size, int64(size), time.Duration(size)*20*time.Millisecond, nil)
	}
	if s.Next() > 5 {
		t.Errorf("%d rows that take 20 ms each", s.Next())
	}
	for range 20 {
		size := s.Next()
		s.Observe(size, int64(size), time.Duration(size)*time.Second, nil)
	}
	if s.Next() != 1 || !s.Slow() {
		t.Errorf("%d rows that take a second each, which is slow: %v", s.Next(), s.Slow())
	}
}

// pipelined takes batches one after the other, each before it tells of the one ahead, and
// keeps how many followed one another.
type pipelined struct {
	timed
	series []int
	lost   int // in this series the connection is lost: one batch unacknowledged, the next uncommitted
}

func (f *pipelined) DeleteAll(ctx context.Context, first Batch, next func() (Batch, bool), done func(Deleted, error)) {
	f.series = append(f.series, 0)
	for b, more := first, true; more; {
		f.series[len(f.series)-1]++
		ahead, follows := next()
		gone, err := f.Delete(ctx, b)
		if f.lost != len(f.series) {
			done(gone, err)
			b, more = ahead, follows
			continue
		}
		done(gone, ErrLost) // the server committed it
		if follows {
			done(Deleted{}, Uncommitted(ErrLost))
		}
		return
	}
}

func (f *pipelined) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func TestOneBatchAtMostFollowsOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &pipelined{timed: timed{fake: fake{rows: 10_000}, perRow: time.Microsecond, locked: 40}}
		r := runAll(t.Context(), f, Policy{BatchSize: 100, BatchTarget: 100 * time.Millisecond}, "a")
		if d := r.Databases[0]; d.Status != Complete || d.DeletedRows != 10_000 {
			t.Errorf("%+v", d)
		}
		var sent []int // until the end of each series
		total := 0
		for _, n := range f.series {
			total += n
			sent = append(sent, total)
		}
		if !slices.Contains(sent, 42) || slices.Contains(sent, 41) { // the locked one is the 41st
			t.Errorf("%v follow one another, batches of %v", f.series, f.batches)
		}
	})
}

func TestQuickBatchesFollowOneAnotherAndAreCountedOneByOne(t *testing.T) {
	for name, c := range map[string]struct {
		perRow time.Duration
		pause  time.Duration
		least  int // of the batches in the longest series
		most   int
	}{
		"quick":        {time.Microsecond, 0, maxPrefetched, 100},
		"slow":         {time.Millisecond, 0, 1, 1},
		"with a pause": {time.Microsecond, time.Second, 1, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &pipelined{timed: timed{fake: fake{rows: 10_000}, perRow: c.perRow}}
			r := runAll(t.Context(), f, Policy{BatchSize: 100, BatchTarget: 100 * time.Millisecond, Pause: c.pause}, "a")
			if d := r.Databases[0]; d.Status != Complete || d.DeletedRows != 10_000 || d.Batches != 100 {
				t.Errorf("%s: %+v", name, d)
			}
			if longest := slices.Max(f.series); longest < c.least || longest > c.most {
				t.Errorf("%s: %d batches follow one another, want %d to %d", name, longest, c.least, c.most)
			}
		})
	}
}

func TestOfALostConnectionOnlyWhatTheServerMayHaveCommittedIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &pipelined{timed: timed{fake: fake{rows: 10_000}, perRow: time.Microsecond}, lost: 3}
		r := runAll(t.Context(), f, Policy{BatchSize: 100, BatchTarget: 100 * time.Millisecond, MaxRows: 10_000}, "a")
		if d := r.Databases[0]; d.Status != Complete || d.DeletedRows != 10_000 || d.Batches != 100 || len(f.series) < 4 {
			t.Errorf("%+v", d)
		}
	})
}

// unindexed is a table that takes long to look over.
type unindexed struct {
	timed
	look time.Duration
}

func (f *unindexed) Open(context.Context, string, Table, bool) (Conn, error) { return f, nil }

func (f *unindexed) Facts() Facts { return Facts{Now: time.Now().UTC(), Clock: time.Now().UTC()} }

func (f *unindexed) Oldest(ctx context.Context, w Window, trail Trail) (time.Time, Window, error) {
	if sleep(ctx, f.look); ctx.Err() != nil {
		return time.Time{}, nil, ErrTimeout
	}
	return f.fake.Oldest(ctx, w, trail)
}

func TestALookThatTakesLongerThanTheRunIsNoGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &unindexed{timed{fake: fake{rows: 100_000}, perRow: time.Millisecond}, time.Hour}
		r := runAll(t.Context(), f, Policy{BatchSize: 1000, MaxDuration: time.Minute}, "a")
		if d := r.Databases[0]; d.StopReason != MaxDuration || d.DeletedRows < 40_000 || d.OldestExpiredAge() != nil {
			t.Errorf("%+v", d)
		}
	})
}

func TestACanceledRunEndsTheBatchInHandAndBeginsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{rows: 100, takes: 10 * time.Second}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(25*time.Second, cancel)
		r := runAll(ctx, f, Policy{BatchSize: 10}, "a")
		if d := r.Databases[0]; d.StopReason != Canceled || d.DeletedRows != 30 || f.left() != 70 {
			t.Errorf("%+v, %d left", d, f.left())
		}
	})
}

func TestABatchThatComesBackAsTheSizeChangesIsCutAnewOrDeleted(t *testing.T) {
	asked := 0
	b := &backlog{quota: newQuota(1000), sizer: newSizer(Policy{BatchSize: 1000}), yields: func() bool { asked++; return asked == 1 }}
	b.changed.L = &b.mu
	for range 2 {
		b.inFlight = 1
		c := &batch{size: 1000, reserved: b.quota.Reserve(1000, false)}
		if back := b.GiveBack(c); back != (len(b.todo) == 1) || back != (b.quota.left == 1000) {
			t.Errorf("given back: %v, to do: %v, %d rows of the cap left", back, b.todo, b.quota.left)
		}
		b.todo, b.quota = nil, newQuota(1000)
	}
}

// asMet deletes rows as they are met: a batch has the whole window, and the last rows are
// refused.
type asMet struct {
	crowd
	refused int
}

func (a *asMet) Open(ctx context.Context, database string, table Table, lock bool) (Conn, error) {
	if _, err := a.crowd.Open(ctx, database, table, lock); err != nil {
		return nil, err
	}
	return meeter{a}, nil
}

type meeter struct{ *asMet }

func (m meeter) Close() { member{&m.crowd}.Close() }

func (m meeter) Cut(_ context.Context, w Window, _, _ int) ([]Batch, Window, error) {
	return []Batch{{Window: w}}, nil, nil
}

func (m meeter) Delete(ctx context.Context, b Batch) (Deleted, error) {
	from := len(m.gone)
	to := min(from+int(b.Most), m.rows-m.refused)
	if from == to && m.refused > 0 {
		return Deleted{Stay: int64(m.refused)}, ErrRefused
	}
	gone, err := member{&m.crowd}.Delete(ctx, Batch{Window: stretch{from, to}})
	gone.More = gone.Rows > 0
	return gone, err
}

func TestABatchWhoseWindowMayHaveMoreComesAgain(t *testing.T) {
	for refused, want := range map[int]Status{0: Complete, 5: Failed} {
		synctest.Test(t, func(t *testing.T) {
			a := &asMet{crowd{fake: fake{rows: 2000, takes: time.Second}}, refused}
			d := runAll(t.Context(), a, Policy{BatchSize: 10, Concurrency: 3}, "a").Databases[0]
			if d.Status != want || d.DeletedRows != int64(2000-refused) || a.crowd.most != 1 {
				t.Errorf("%+v, with %d deletes at once", d, a.crowd.most)
			}
			if said := "5 rows stay, and all others are deleted"; (refused > 0) != strings.Contains(d.Error, said) {
				t.Errorf("%d refused: %q", refused, d.Error)
			}
			a = &asMet{crowd{fake: fake{rows: 2000, takes: time.Second}}, refused}
			if d := runAll(t.Context(), a, Policy{BatchSize: 10, MaxRows: 1234}, "a").Databases[0]; d.StopReason != MaxRows || d.DeletedRows != 1234 {
				t.Errorf("%+v", d)
			}
		})
	}
}
