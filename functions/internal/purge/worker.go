package purge

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

// After a lock error a worker rests up to this long: a deadlock is reported
// at once, and two sessions that step back in step meet again.
const lockedRest = 200 * time.Millisecond

// worker deletes batches over one connection. They follow one another without a word in
// between, where they are quick and there is nobody to make way for: see [Pipeliner].
type worker struct {
	turn  *turn
	conn  Conn
	rest  time.Duration // before the next batch
	quick bool          // the last one took little of the time that one aims at
	series
}

// series is of batches that follow one another.
type series struct {
	began     time.Time // when the first did
	ended     time.Time // when the last one did that has
	underWay  []*batch  // in order
	last      bool      // no other follows
	deaf      bool      // the last one did not tell of others
	locked    error     // of the last that met a lock
	uncounted bool      // it is not known how much one of them wrote
}

// work deletes batches until there are none left.
func (w *worker) work(ctx context.Context) {
	t := w.turn
	for {
		first := t.backlog.Next(ctx, w.conn, w.low())
		if first == nil {
			return
		}
		throttled := w.wait(ctx)
		w.rest = 0
		if t.backlog.GiveBack(first) {
			continue
		}
		w.delete(ctx, first, throttled || t.run.policy.Pause > 0)
		if throttled {
			w.rest = max(w.rest, t.run.pacer.Rest(time.Since(w.began)))
		}
		if w.locked != nil {
			w.rest = lockedRest/2 + rand.N(lockedRest/2)
			t.waiting.on(t.locks.by(ctx, w.conn, t.log, "rows are", w.locked))
		}
		if w.uncounted {
			t.run.pacer.Absorb(ctx, w.conn)
		}
	}
}

// low returns how many batches should be ready for all workers.
func (w *worker) low() int {
	if w.quick && !w.turn.backlog.sizer.Learning() {
		return maxPrefetched
	}
	return w.turn.run.policy.Concurrency
}

// wait returns when the next batch may begin, and whether the run makes way for others.
func (w *worker) wait(ctx context.Context) (throttled bool) {
	waiting, t := time.Now(), w.turn
	sleep(ctx, w.rest)
	if throttled = t.run.pacer.Wait(ctx, w.conn); throttled {
		t.backlog.Waited(time.Since(waiting))
		t.waiting.on(ThrottleReason)
	} else if w.rest == 0 {
		t.waiting.on("")
	}
	return throttled
}

// delete deletes first, and unless it is to be the last, those that may follow. What has
// begun ends although the run is canceled meanwhile; nothing begins thereafter.
func (w *worker) delete(ctx context.Context, first *batch, last bool) {
	now := time.Now()
	w.series = series{began: now, ended: now, underWay: []*batch{first}, last: last}
	sensor := &w.turn.run.pacer.sensor
	sensor.begin()
	defer sensor.end()
	err := recoverPanic(ctx, w.turn.log, func() error {
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		whole, cancel := withoutCancel(ctx)
		defer cancel()
		deleteAll(whole, w.conn, first.Batch, func() (Batch, bool) { return w.next(ctx) }, func(gone Deleted, err error) { w.done(ctx, gone, err) })
		return nil
	})
	for len(w.underWay) > 0 { // it was canceled, or panicked
		w.done(ctx, Deleted{}, err)
	}
}

// next returns the batch that may begin before the last one has ended, if any may: none
// does after one that failed, for a lock that stays would take its time from each.
func (w *worker) next(ctx context.Context) (next Batch, more bool) {
	t := w.turn
	if w.last || !w.quick || ctx.Err() != nil || t.run.pacer.Throttled() || w.deaf && time.Since(w.began) >= t.run.policy.BatchTarget {
		return next, false
	}
	b := t.backlog.Ready()
	if b == nil {
		return next, false
	}
	t.waiting.on("")
	w.underWay = append(w.underWay, b)
	return b.Batch, true
}

// done takes in what came of the first batch that is under way.
func (w *worker) done(ctx context.Context, gone Deleted, err error) {
	now, t, b := time.Now(), w.turn, w.underWay[0]
	gone.Took = cmp.Or(gone.Took, now.Sub(w.ended))
	if err != nil { // it may have taken one
		gone.Writes = 1
	}
	b.gone, b.err, w.ended = gone, err, now
	w.quick, w.deaf = err == nil && gone.Took < t.run.policy.BatchTarget/2, gone.Count == 0 || gone.Writes < 0
	w.last, w.uncounted = w.last || err != nil, w.uncounted || gone.Writes < 0
	if gone.Rows > 0 {
		w.rest = t.run.policy.Pause
	}
	if errors.Is(err, ErrLocked) {
		w.locked = err
	}
	t.run.pacer.Took(gone)
	t.backlog.sizer.Observe(b.size, gone.Rows, gone.Took, err)
	t.log.LogAttrs(ctx, slog.LevelDebug, "batch", slog.Int64("rows", gone.Rows), slog.Duration("took", gone.Took), slog.Bool("failed", err != nil))
	t.backlog.Done(ctx, b)
	w.underWay = w.underWay[1:]
}

// deleteAll deletes first and all that next returns over conn, each before it is known what
// came of the one ahead where it can.
func deleteAll(ctx context.Context, conn Conn, first Batch, next func() (Batch, bool), done func(Deleted, error)) {
	if pipeliner, ok := conn.(Pipeliner); ok {
		pipeliner.DeleteAll(ctx, first, next, done)
		return
	}
	for b, more := first, true; more; b, more = next() {
		done(conn.Delete(ctx, b))
	}
}
