package purge

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	// A batch that met a lock, or took longer than there was time, is tried again
	// in pieces of this part of its size, so that four tries isolate one locked row
	// among 5,000.
	splitInto = 10
	// After a lock error the loop rests up to this long: a deadlock is reported
	// at once, and two sessions that step back in step meet again.
	lockedRest = 200 * time.Millisecond
	// So many batches at most go to the server at once.
	tripMost = 8
	// So many batches for each connection are cut ahead of those that are being
	// deleted: as many as go while the ends of some more are read.
	jobsReady = tripMost
	// After so many batches the backlog is large enough to be worth more
	// connections, so that one reads while the others delete.
	widenAfter = 8
)

var (
	// errOutgrown sends a job back: batches have become much smaller since.
	errOutgrown = errors.New("the batch is to be cut again")
	// errNeverFits leaves rows aside: they go together, and are more than the cap.
	errNeverFits = errors.New("more rows than the cap go together or not at all")
)

// part is a stretch of the table still to be swept.
type part struct {
	rows   Range
	batch  int  // most rows a statement deletes here; 0 is as many as elsewhere
	locked bool // others held a row of it
}

// job is a batch on its way through a worker.
type job struct {
	part
	granted int64 // rows, out of the cap
	deleted int64
	took    time.Duration
	err     error
}

// sweep deletes the rows of todo batch by batch: workers delete while the next
// batches are cut. It answers the parts that are still to do: none, unless there
// is an error.
func (r *run) sweep(ctx context.Context, todo []part) (left []part, failure error) {
	concurrency := max(1, r.policy.Concurrency)
	most := jobsReady * (concurrency + 1) // jobs in flight
	jobs, done := make(chan job, most), make(chan job, most)
	var workers sync.WaitGroup
	work := func(c *conn) { workers.Go(func() { r.work(ctx, c, jobs, done) }) }
	r.listen(ctx)
	for _, c := range r.deleters() {
		work(c)
	}
	defer workers.Wait()
	defer close(jobs)

	var unfitting error // rows were left aside that no cap allows
	flying := 0         // jobs cut and not yet done
	ready := tray{run: r, jobs: jobs}
	wide := false
	for planned := 0; ; {
		if failure == nil && flying < most && len(todo) > 0 {
			j, err := r.plan(ctx, &todo, flying == 0)
			if errors.Is(err, errNeverFits) {
				left, unfitting = append(left, j.part), errMaxRows
				continue
			}
			if err == nil {
				ready.add(j)
				flying++
				if planned++; planned >= widenAfter && len(todo) > 0 && !wide && !r.throttled() {
					wide = true
					for _, c := range r.widen(ctx, concurrency) {
						work(c)
					}
				}
				continue
			}
			// What flies may give rows back to the cap, and is not waited for in plan.
			if !errors.Is(err, errMaxRows) || flying == 0 {
				failure = err
			}
		}
		ready.send()
		if flying == 0 {
			return append(left, todo...), cmp.Or(failure, unfitting)
		}
		j := <-done
		flying--
		switch {
		case errors.Is(j.err, ErrLost): // until it is known, all of it counts against the cap
			r.cap.settle(j.granted, j.granted)
			r.unsure, left = append(r.unsure, j), append(left, j.part)
			failure = cmp.Or(failure, j.err)
			continue
		case errors.Is(j.err, ErrLocked): // the others first, then this in smaller pieces
			todo = append(todo, part{j.rows, max(1, j.batch/splitInto), true})
		case errors.Is(j.err, errOutgrown):
			todo = slices.Insert(todo, 0, part{rows: j.rows, locked: j.locked})
		case errors.Is(j.err, ErrTimeout) && ctx.Err() == nil && j.batch > 1: // what little time is left takes a little
			todo = slices.Insert(todo, 0, part{j.rows, max(1, j.batch/splitInto), j.locked})
		case j.err != nil:
			left = append(left, j.part)
			failure = cmp.Or(failure, j.err)
		case j.deleted > 0:
			r.count(j.deleted)
		}
		r.cap.settle(j.granted, j.deleted)
	}
}

// tray holds jobs back while the connection that cuts them is also the one to
// delete them, so that the two take turns of several jobs: as many as make a trip,
// or as were cut in the time of a batch.
type tray struct {
	run   *run
	jobs  chan<- job
	held  []job
	since time.Time // the first was cut
}

func (t *tray) add(j job) {
	if t.held = append(t.held, j); len(t.held) == 1 {
		t.since = time.Now()
	}
	if t.run.lent || len(t.held) == tripMost || time.Since(t.since) >= t.run.policy.BatchTarget {
		t.send()
	}
}

func (t *tray) send() {
	for _, j := range t.held {
		t.jobs <- j
	}
	t.held = t.held[:0]
}

// plan cuts the next batch off todo. With wait it waits for rows that other
// databases may give back to the cap.
func (r *run) plan(ctx context.Context, todo *[]part, wait bool) (job, error) {
	front := &(*todo)[0]
	if err := ctx.Err(); err != nil {
		return job{}, err
	}
	n := r.batchSize()
	if front.batch > 0 {
		n = min(n, front.batch)
	}
	granted := r.cap.take(int64(n), wait)
	if granted == 0 {
		return job{}, errMaxRows
	}
	var batch Batch
	var rest Range
	err := r.guard(ctx, func() error { // so that the grant goes back and what flies is counted
		return r.patiently(ctx, func() (err error) {
			batch, rest, err = r.reader().next(ctx, front.rows, int(granted))
			return err
		})
	})
	if err == nil && batch.Unbounded {
		granted, err = r.admit(ctx, batch.Rows, granted)
	}
	if err != nil {
		r.cap.settle(granted, 0)
	}
	if err != nil && !errors.Is(err, errNeverFits) {
		return job{}, err
	}
	j := job{part: *front, granted: granted}
	j.rows, j.batch = batch.Rows, n
	if front.rows = rest; rest == nil {
		*todo = (*todo)[1:]
	}
	return j, err
}

// batchSize answers how many rows a batch may have that is cut now.
func (r *run) batchSize() int {
	n := r.size.now()
	if r.throttled() {
		n = min(n, leastBatch)
	}
	return n
}

// admit answers the grant for rows that go together or not at all, of which some
// are granted already.
func (r *run) admit(ctx context.Context, together Range, granted int64) (int64, error) {
	var rows int64
	err := r.guard(ctx, func() (err error) {
		rows, err = r.rows(ctx, together)
		return err
	})
	if err != nil {
		return granted, err
	}
	if rows > int64(r.policy.BatchSize) {
		r.find(Warning("unbounded-batch", "more rows than a batch may hold share one expiration, and the role may not read what tells them apart: they go in one statement, and where MAX_ROWS is less they stay. GRANT SELECT ON dbo.ClientAccessTokens to the role to have them deleted in batches"))
	}
	granted += r.cap.take(rows-granted, false)
	switch {
	case granted >= rows:
		return granted, nil
	case rows > r.policy.MaxRows:
		return granted, errNeverFits
	default:
		return granted, errMaxRows
	}
}

// work deletes the rows of one job after the other, several in one trip to the
// server where they are quick.
func (r *run) work(ctx context.Context, c *conn, jobs <-chan job, done chan<- job) {
	var rest time.Duration // before the next trip
	most := 1              // jobs of a trip
	for first := range jobs {
		sleep(ctx, rest)
		r.look(ctx, c)
		throttled := r.throttled()
		if throttled {
			most = 1
			sleep(ctx, r.throttle.turn(r.slowness()*throttledRest))
		}
		// The other workers get their share of what is there.
		trip := gather(first, jobs, min(most, 1+len(jobs)/max(1, r.policy.Concurrency)))
		trip = slices.DeleteFunc(trip, func(j job) bool {
			outgrown := j.batch >= 2*r.batchSize()
			if outgrown {
				j.err = errOutgrown
				done <- j
			}
			return outgrown
		})
		if len(trip) == 0 {
			continue
		}
		start := time.Now()
		r.delete(ctx, c, trip)
		took := time.Since(start)
		most, rest = min(2*most, r.fitting(took/time.Duration(len(trip)))), 0
		if throttled {
			rest = r.slowness() * max(throttledRest, min(took, r.policy.BatchTarget))
		}
		for _, j := range trip {
			r.size.learn(j.batch, j.deleted, j.took, j.err)
			switch {
			case errors.Is(j.err, ErrLocked):
				most, rest = 1, lockedRest/2+rand.N(lockedRest/2)
			case j.deleted > 0:
				rest = max(rest, r.policy.Pause)
			}
			r.log.LogAttrs(ctx, slog.LevelDebug, "batch", slog.Int64("rows", j.deleted),
				slog.Duration("took", j.took), slog.Bool("failed", j.err != nil))
			done <- j
		}
	}
}

// fitting answers how many batches a trip may have where one takes so long: as
// many as take the time that one aims at, so that a stop never waits for longer.
func (r *run) fitting(took time.Duration) int {
	if r.policy.Pause > 0 {
		return 1 // there is a rest between any two
	}
	return max(1, min(tripMost, int(r.policy.BatchTarget/max(took, 1))))
}

// gather answers first and what else is ready, n jobs at most.
func gather(first job, jobs <-chan job, n int) []job {
	trip := []job{first}
	for len(trip) < n {
		select {
		case j, more := <-jobs:
			if !more {
				return trip
			}
			trip = append(trip, j)
		default:
			return trip
		}
	}
	return trip
}

// delete deletes the rows of a trip, and fills in what came of each job.
func (r *run) delete(ctx context.Context, c *conn, trip []job) {
	batches := make([]Range, len(trip))
	for i, j := range trip {
		batches[i] = j.rows
	}
	r.throttle.deleting(1)
	defer r.throttle.deleting(-1)
	answered := 0
	err := r.guard(ctx, func() error {
		c.delete(ctx, batches, func(rows int64, took time.Duration, err error) {
			j := &trip[answered]
			j.deleted, j.took, j.err = rows, took, err
			if rows > 0 || err != nil { // else it wrote nothing
				r.throttle.wrote()
			}
			answered++
		})
		return nil
	})
	for i := answered; i < len(trip); i++ {
		trip[i].err = err // a panic
	}
}

// widen gives a large backlog as many connections as may delete at once, and one
// for reading alone, if there is one to lend; it answers the new ones that delete.
// Where the server has none to spare, fewer do it all.
func (r *run) widen(ctx context.Context, concurrency int) (workers []*conn) {
	have := len(r.deleters())
	if r.lend(r) {
		concurrency++
	}
	for len(r.tables) < concurrency {
		if err := r.open(ctx, false); err != nil {
			r.log.WarnContext(ctx, "no further connection", "error", err.Error())
			break
		}
	}
	return r.deleters()[min(have, len(r.deleters())):]
}

// sleep rests for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
