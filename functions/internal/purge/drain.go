package purge

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// After a lock error a worker rests up to this long: a deadlock is reported
	// at once, and two sessions that step back in step meet again.
	lockedRest = 200 * time.Millisecond
	// maxPipelined is how many batches at most go to the server at once.
	maxPipelined = 8
	// firstLookShare is the part of the time left that a look may take before
	// anything is deleted, where it has to read the whole table.
	firstLookShare = 8
)

// errKept is for rows that DELETE leaves where they are.
var errKept = errors.New("rows have expired that DELETE does not remove: look for a trigger, a rule or a row-level security policy on the table")

// drain deletes what had expired at the cut-off. Only a look that finds nothing
// proves that nothing is left; rows inserted behind a sweep are found by the next.
func (t *turn) drain(ctx context.Context) error {
	found, err := t.firstLook(ctx)
	for stalled := 0; err == nil && found != nil; found, err = t.look(ctx) {
		// Once can be another cleaner that was faster; twice can't.
		if stalled == 2 {
			return errKept
		}
		before := t.backlog.rows
		if err := t.sweep(ctx, found); err != nil {
			return err
		}
		if stalled++; t.backlog.rows > before {
			stalled = 0
		}
	}
	return err
}

// firstLook looks for expired rows. A look that takes too long is no gate: what the
// whole window holds is swept without it.
func (t *turn) firstLook(ctx context.Context) (Window, error) {
	deadline, limited := ctx.Deadline()
	if t.conn.Facts().Indexed || !limited {
		return t.look(ctx)
	}
	brief, cancel := context.WithTimeout(ctx, time.Until(deadline)/firstLookShare)
	defer cancel()
	found, err := t.look(brief)
	if errors.Is(err, ErrTimeout) || err != nil && brief.Err() != nil && ctx.Err() == nil {
		return t.expired, nil
	}
	return found, err
}

// look looks for the oldest of all expired rows, and returns what is left of the
// window from there; nil when none is left.
func (t *turn) look(ctx context.Context) (Window, error) {
	oldest, found, err := t.oldest(ctx, t.expired)
	if err != nil {
		return nil, err
	}
	if found == nil {
		t.result.looked(nil)
		return nil, nil
	}
	t.result.LeftKnown = false // what is found here goes, or is looked for at the end
	if t.result.OldestExpiration == nil || oldest.Before(t.result.OldestExpiration.Time) {
		t.result.OldestExpiration = instant(oldest)
	}
	return found, nil
}

// sweep deletes the rows of w batch by batch, with a worker for each connection. A
// large backlog gets more connections, once.
func (t *turn) sweep(ctx context.Context, w Window) error {
	t.run.pacer.Listen(ctx, t.conn)
	t.backlog.Begin(w)
	var workers sync.WaitGroup
	begin := func(conns []Conn) {
		for _, conn := range conns {
			workers.Go(func() { t.deleteBatches(ctx, conn) })
		}
	}
	begin(append([]Conn{t.conn}, t.more...))
	if t.backlog.IsLarge() && !t.scaledOut {
		begin(t.addConns(ctx))
	}
	if t.prefetcher != nil {
		workers.Go(func() { t.backlog.Prefetch(ctx, t.prefetcher) })
	}
	workers.Wait()
	return t.backlog.End()
}

// deleteBatches is a worker: it deletes batches over conn until there are none left,
// several in one trip to the server where they are quick.
func (t *turn) deleteBatches(ctx context.Context, conn Conn) {
	var rest time.Duration
	trip := 1 // batches of the next trip
	for {
		batches := t.backlog.Next(ctx, conn, trip, t.run.policy.Concurrency)
		if batches == nil {
			return
		}
		waiting := time.Now()
		sleep(ctx, rest)
		throttled := t.run.pacer.Wait(ctx, conn)
		if throttled {
			t.backlog.Waited(time.Since(waiting))
		}
		if batches = t.backlog.GiveBack(batches); len(batches) == 0 {
			rest = 0
			continue
		}
		took := t.delete(ctx, conn, batches)
		trip, rest = min(2*trip, t.fitting(took/time.Duration(len(batches)))), 0
		if throttled {
			trip, rest = 1, t.run.pacer.Rest(took)
		}
		for _, b := range batches {
			t.sizer.Observe(b.size, b.deleted, b.took, b.err)
			switch {
			case errors.Is(b.err, ErrLocked):
				trip, rest = 1, lockedRest/2+rand.N(lockedRest/2)
			case b.deleted > 0:
				rest = max(rest, t.run.policy.Pause)
			}
			t.log.LogAttrs(ctx, slog.LevelDebug, "batch", slog.Int64("rows", b.deleted),
				slog.Duration("took", b.took), slog.Bool("failed", b.err != nil))
			t.backlog.Done(ctx, b)
		}
	}
}

// fitting returns how many batches a trip may have where one takes so long: as many
// as take the time that one aims at, so that a stop never waits for longer.
func (t *turn) fitting(took time.Duration) int {
	if t.run.policy.Pause > 0 {
		return 1 // there is a rest between any two
	}
	return max(1, min(maxPipelined, int(t.run.policy.BatchTarget/max(took, 1))))
}

// delete deletes batches and fills in what came of each. Those that have begun end
// although the run is canceled meanwhile; none begins thereafter.
func (t *turn) delete(ctx context.Context, conn Conn, batches []*batch) (took time.Duration) {
	began := time.Now()
	if errors.Is(ctx.Err(), context.Canceled) {
		for _, b := range batches {
			b.err = ctx.Err()
		}
		return 0
	}
	ctx, cancel := withoutCancel(ctx)
	defer cancel()
	sensor := &t.run.pacer.sensor
	sensor.begin()
	defer sensor.end()
	last, done := began, 0
	err := recoverPanic(ctx, t.log, func() error {
		deleteAll(ctx, conn, batches, func(gone Deleted, err error) {
			now, b := time.Now(), batches[done]
			b.deleted, b.took, b.err = gone.Rows, cmp.Or(gone.Took, now.Sub(last)), err
			if gone.Rows > 0 || err != nil { // else it wrote nothing
				sensor.wrote()
			}
			last = now
			done++
		})
		return nil
	})
	for _, b := range batches[done:] {
		b.err = err // a panic
	}
	return time.Since(began)
}

// deleteAll deletes batches over conn, ahead of the answers where it can.
func deleteAll(ctx context.Context, conn Conn, batches []*batch, done func(Deleted, error)) {
	pipeliner, ok := conn.(Pipeliner)
	if !ok || len(batches) == 1 {
		for _, b := range batches {
			done(conn.Delete(ctx, b.Batch))
		}
		return
	}
	all := make([]Batch, len(batches))
	for i, b := range batches {
		all[i] = b.Batch
	}
	pipeliner.DeleteAll(ctx, all, done)
}

// withoutCancel returns ctx with its deadline, and not canceled before.
func withoutCancel(ctx context.Context) (context.Context, context.CancelFunc) {
	whole := context.WithoutCancel(ctx)
	if deadline, limited := ctx.Deadline(); limited {
		return context.WithDeadline(whole, deadline)
	}
	return whole, func() {}
}
