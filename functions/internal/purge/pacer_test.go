package purge

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// server counts the transactions that write to it: those of its tables, and what
// others come to in the time since it began.
type server struct {
	began   time.Time
	others  func(time.Duration) int64
	tables  map[string]*busy
	numbers int64 // that each batch takes; 0 is one, and the batch knows it
	tells   bool  // with each batch, how many there were
}

// busy is a table of a server, which takes some time for each row.
type busy struct {
	timed
	server *server
	began  []time.Duration // each batch, since the server did
}

func newServer(rows int, others func(time.Duration) int64, names ...string) *server {
	s := &server{began: time.Now(), others: others, tables: map[string]*busy{}}
	for _, name := range names {
		s.tables[name] = &busy{timed{fake: fake{rows: rows}, perRow: 10 * time.Microsecond}, s, nil}
	}
	return s
}

func (s *server) Open(_ context.Context, database string, _ Table, _ bool) (Conn, error) {
	return s.tables[database], nil
}

func (s *server) Writes(context.Context) (int64, error) {
	count := 1000 + s.others(time.Since(s.began))
	for _, t := range s.tables {
		t.mu.Lock()
		count += int64(t.deletes) * max(1, s.numbers)
		t.mu.Unlock()
	}
	return count, nil
}

func (t *busy) Writes(ctx context.Context) (int64, error) { return t.server.Writes(ctx) }

func (t *busy) Delete(ctx context.Context, b Batch) (Deleted, error) {
	began := time.Since(t.server.began)
	rows := b.Window.(stretch).len()
	sleep(ctx, time.Duration(rows)*t.perRow)
	t.mu.Lock()
	t.batches, t.began = append(t.batches, rows), append(t.began, began)
	t.mu.Unlock()
	gone, err := t.fake.Delete(ctx, b)
	if t.server.numbers > 0 {
		gone.Writes = -1
	}
	if t.server.tells {
		gone.Count, _ = t.server.Writes(ctx)
	}
	sleep(ctx, 3*time.Millisecond) // it is committed, and the answer on its way
	return gone, err
}

func TestARunMakesWayInTheMiddleOfASeriesWhereBatchesTellOfOthers(t *testing.T) {
	const come, batch = 600 * time.Millisecond, 53 * time.Millisecond
	for tells, inTime := range map[bool]bool{true: true, false: false} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(400_000, func(since time.Duration) int64 { return int64(max(0, since-come) / time.Millisecond) }, "a")
			s.tells = tells
			runAll(t.Context(), s, Policy{BatchSize: 5000, BatchTarget: 20 * batch, MaxDuration: 6 * time.Second}, "a")
			var last time.Duration // that a large batch began before the run made way
			for i, a := 0, s.tables["a"]; i < len(a.batches) && a.began[i] < 2*come+come/2; i++ {
				if a.batches[i] > minBatchSize {
					last = a.began[i]
				}
			}
			if got := last < come+2*batch; got != inTime {
				t.Errorf("batches tell: %t; the last large one began after %v", tells, last)
			}
		})
	}
}

// small returns how many rows went in throttled batches, and in the first one.
func (t *busy) small() (rows int) {
	for _, n := range t.batches {
		if n <= minBatchSize {
			rows += n
		}
	}
	return rows
}

// listening has counted others' writes as it was opened.
type listening struct {
	*busy
	opened time.Time
	writes int64
}

func (l listening) Open(context.Context, string, Table, bool) (Conn, error) { return l, nil }

func (l listening) Facts() Facts {
	f := l.busy.Facts()
	f.Writes, f.Counted = l.writes, l.opened
	return f
}

func TestARunHasListenedSinceItsConnectionWasOpened(t *testing.T) {
	for _, c := range []struct {
		others       func(time.Duration) int64
		since, first time.Duration
		rows         int
	}{
		{often, senseInterval / 2, senseInterval / 2, minBatchSize},
		{never, senseInterval / 2, senseInterval / 2, 500},
		{often, 2 * senseInterval, 0, minBatchSize},
		{never, 2 * throttleFor, senseInterval, 500}, // too long ago to tell of now
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(1_000, c.others, "a")
			l := listening{busy: s.tables["a"], opened: time.Now()}
			l.writes, _ = s.Writes(t.Context())
			time.Sleep(c.since)
			runAll(t.Context(), l, adapting, "a")
			if a := s.tables["a"]; a.began[0] != c.since+c.first || slices.Max(a.batches) != c.rows {
				t.Errorf("%v: batches have up to %d rows and begin after %v", c.since, slices.Max(a.batches), a.began[0])
			}
		})
	}
}

func often(d time.Duration) int64 { return d.Milliseconds() / 5 }

func never(time.Duration) int64 { return 0 }

var adapting = Policy{BatchSize: 5000, BatchTarget: 50 * time.Millisecond, Parallel: 4}

func TestARunIsThrottledWhileOthersWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(100_000, often, "a")
		r := runAll(t.Context(), s, adapting, "a")
		if r.Status != Complete || r.DeletedRows != 100_000 {
			t.Errorf("%+v", r)
		}
		if small := s.tables["a"].small(); small < 100_000 || r.DurationMs < int64(small/minBatchSize)*minInterval.Milliseconds() {
			t.Errorf("%d rows in small batches, in %d ms", small, r.DurationMs)
		}
	})
}

func TestARunListensBeforeItsFirstBatch(t *testing.T) {
	whole := adapting
	whole.BatchTarget = 0
	for _, c := range []struct {
		name   string
		policy Policy
		others func(time.Duration) int64
		first  time.Duration // batch begins
		rows   int           // of the largest
	}{
		{"others", adapting, often, senseInterval, minBatchSize},
		{"nobody", adapting, never, senseInterval, 500},
		{"nobody can be heard", adapting, func(time.Duration) int64 { return -1000 }, 0, 500},
		{"batches that don't adapt", whole, often, 0, 1_000},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(1_000, c.others, "a")
			if c.name == "nobody can be heard" {
				s.tables["a"].server = &server{began: s.began, others: c.others}
			}
			runAll(t.Context(), s, c.policy, "a")
			if a := s.tables["a"]; a.began[0] != c.first || slices.Max(a.batches) != c.rows {
				t.Errorf("%s: batches have up to %d rows and begin after %v", c.name, slices.Max(a.batches), a.began[0])
			}
		})
	}
}

func TestAThrottledRunBeginsSlowly(t *testing.T) {
	brief := adapting
	brief.MaxDuration = 24 * time.Second
	for _, c := range []struct {
		policy Policy
		step   time.Duration
	}{{adapting, slowStartStep}, {brief, 2 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(1_000_000, often, "a")
			runAll(t.Context(), s, c.policy, "a")
			// A batch takes 1 ms, its answer 3 ms, and the rest as long as both.
			for step, rest := range []time.Duration{128, 64, 32, 16, 8, 4} {
				batches := 0
				for i, at := range s.tables["a"].began {
					if s.tables["a"].batches[i] <= minBatchSize && at/c.step == time.Duration(step) {
						batches++
					}
				}
				if most := int(c.step / ((rest + 4) * time.Millisecond)); batches > most+1 || batches < most*3/4 {
					t.Errorf("step %d of %v: %d batches instead of %d", step, c.step, batches, most)
				}
			}
		})
	}
}

func TestThrottledConnectionsShareTheirTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := []string{"a", "b", "c", "d"}
		s := newServer(100_000, often, names...)
		p := adapting
		p.Concurrency = 3
		r := runAll(t.Context(), s, p, names...)
		small, early := 0, 0
		for _, name := range names {
			small += s.tables[name].small()
			for i, at := range s.tables[name].began {
				if s.tables[name].batches[i] <= minBatchSize && at < slowStartStep {
					early++
				}
			}
		}
		if most := int(slowStartStep / (slowStartFactor * minInterval)); early > most+len(names) {
			t.Errorf("%d batches in the first step instead of %d", early, most)
		}
		if small < 400_000 || r.DurationMs < int64(small/minBatchSize)*minInterval.Milliseconds() {
			t.Errorf("%d rows in small batches, in %d ms", small, r.DurationMs)
		}
	})
}

func TestARunIsNotAnotherToItself(t *testing.T) {
	for _, concurrency := range []int{1, 2, 5} {
		synctest.Test(t, func(t *testing.T) {
			names := []string{"a", "b", "c", "d", "e", "f"}
			s := newServer(100_000, never, names...)
			p := adapting
			p.Concurrency = concurrency
			if r := runAll(t.Context(), s, p, names...); r.Status != Complete {
				t.Errorf("%+v", r)
			}
			for _, name := range names {
				if small := s.tables[name].small(); small > concurrency*minBatchSize {
					t.Errorf("%d: %d rows of %s in small batches", concurrency, small, name)
				}
			}
		})
	}
}

func TestARunIsNotThrottledForEver(t *testing.T) {
	whole := adapting
	whole.BatchTarget = 0
	limited := adapting
	limited.MaxDuration = 3 * time.Second
	for _, c := range []struct {
		name   string
		policy Policy
		others func(time.Duration) int64
		small  [2]int // rows, at least and at most
	}{
		{"when others have gone", adapting, func(d time.Duration) int64 { return often(min(d, time.Second)) }, [2]int{1_500, 6_000}},
		{"when half of the time is over", limited, often, [2]int{5_000, 15_000}},
		{"where batches don't adapt", whole, often, [2]int{0, 0}},
		{"where the server does not tell", adapting, func(d time.Duration) int64 { return -1000 }, [2]int{minBatchSize, minBatchSize}},
		{"for a heartbeat", adapting, func(d time.Duration) int64 { return d.Milliseconds() / 500 }, [2]int{minBatchSize, minBatchSize}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(200_000, c.others, "a")
			if c.name == "where the server does not tell" {
				s.tables["a"].server = &server{began: s.began, others: c.others}
			}
			r := runAll(t.Context(), s, c.policy, "a")
			if small := s.tables["a"].small(); small < c.small[0] || small > c.small[1] {
				t.Errorf("%s: %d rows of %d in small batches, %s", c.name, small, r.DeletedRows, r.Status)
			}
		})
	}
}

func TestARunOfManyDatabasesBeginsSlowlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []string
		for i := range 100 {
			names = append(names, fmt.Sprint("db", i))
		}
		s := newServer(1_000, often, names...)
		brief := adapting
		brief.MaxDuration = 5 * time.Second
		r := runAll(t.Context(), s, brief, names...)
		if r.DeletedRows < 50_000 {
			t.Errorf("%d rows of 100,000 in %s", r.DeletedRows, brief.MaxDuration)
		}
		for _, d := range r.Databases {
			if d.ThrottledMs > 0 {
				return
			}
		}
		t.Error("no database says that it waited for others")
	})
}
