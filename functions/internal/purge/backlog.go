package purge

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

const (
	// A batch that met a lock, was refused or took longer than it may is tried again,
	// after all others, in pieces of this part of its size, so that four tries isolate
	// one such row among 5,000.
	splitInto = 10
	// prefetch is how many batches are cut in one reading, and prefetchRows how many
	// rows they have: reading where they end then takes the time of one delete.
	// maxPrefetched is how many are cut ahead at most, or nearly.
	prefetch      = 8
	prefetchRows  = 40_000
	maxPrefetched = 32
	// checkpointRows is about how many deleted rows one look may have to pass over:
	// their index entries stay until VACUUM comes, and a single look over a million
	// of them takes longer than any batch.
	checkpointRows = 50_000
	// slowRows is below how many rows of a batch it is worth a word that they take long.
	slowRows = 10
)

// errMaxRows ends a sweep although there is time and nothing went wrong.
var errMaxRows = errors.New("the cap on rows is reached")

// backlog is what is still to be deleted from one table. Workers pull batches from it,
// and it takes in what came of them.
type backlog struct {
	quota   *quota
	sizer   *sizer
	yields  func() bool                                     // whether the run makes way for others
	deleted func(rows int64)                                // is told of each batch that deleted rows
	waits   func(ctx context.Context, conn Conn, err error) // is told why a cut has to wait
	log     *slog.Logger

	mu      sync.Mutex
	changed sync.Cond
	sweep
	totals
}

// sweep is where one that goes over the table is.
type sweep struct {
	todo     []part   // not cut yet
	ready    []*batch // cut
	cutting  bool     // one worker is at it
	inFlight int      // batches that workers have
	short    bool     // the quota was used up when it was last asked
	cut      int      // batches
	large    bool     // after many of them there was more to cut, and nobody to make way for
	failure  error    // why it stops
	aside    []part   // what it leaves
	refused  refusedError
}

// totals are what came of all sweeps.
type totals struct {
	rows      int64 // deleted
	batches   int   // that deleted rows
	trail     Trail
	unmarked  int64         // rows since the last checkpoint
	slow      bool          // a few rows ran out of time
	throttled time.Duration // that workers waited for others, all together
	unacknowledged
}

// Begin begins a sweep of windows, in their order.
func (b *backlog) Begin(windows []Window) {
	b.sweep = sweep{}
	for _, w := range windows {
		b.todo = append(b.todo, part{window: w})
	}
}

// End ends the sweep once no worker has a batch any more. It returns why it stopped
// before all was done, if it did.
func (b *backlog) End() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.aside, b.todo = append(b.aside, b.todo...), nil
	b.refused.unfinished = b.failure != nil
	switch {
	case b.failure != nil:
		return b.failure
	case b.refused.rows > 0:
		return b.refused
	}
	return nil
}

// size returns how many rows a batch has that is cut now.
func (b *backlog) size() int {
	size := b.sizer.Next()
	if b.yields() {
		size = min(size, minBatchSize)
	}
	return size
}

// Left returns what the last sweep left: nil when it was done, or never begun.
func (b *backlog) Left() []part { return b.aside }

// Next returns a batch for a worker; nil when there are none any more. It cuts more over
// conn where fewer than low are ready.
func (b *backlog) Next(ctx context.Context, conn Conn, low int) *batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case len(b.ready) > 0 && b.stale(b.ready[0]):
			b.ready = b.recut(b.ready)
		case b.wantsCut(low):
			b.cutMore(ctx, conn)
		case len(b.ready) > 0:
			return b.take()
		case b.idle():
			b.changed.Broadcast()
			return nil
		default: // what others are at may come back in pieces
			b.changed.Wait()
		}
	}
}

// Ready returns a batch for a worker where one is ready; else nil, at once.
func (b *backlog) Ready() *batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ready) == 0 || b.stale(b.ready[0]) {
		return nil
	}
	return b.take()
}

// take takes the first batch that is ready.
func (b *backlog) take() *batch {
	first := b.ready[0]
	b.ready = b.ready[1:]
	b.inFlight++
	b.changed.Broadcast()
	return first
}

// Prefetch cuts ahead of the workers over conn, until there is nothing to cut.
func (b *backlog) Prefetch(ctx context.Context, conn Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.idle() {
		if b.wantsCut(maxPrefetched) {
			b.cutMore(ctx, conn)
		} else {
			b.changed.Wait()
		}
	}
}

// IsLarge waits until it is known whether the sweep is worth more connections.
func (b *backlog) IsLarge() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.large && !b.idle() {
		b.changed.Wait()
	}
	return b.large
}

// more tells whether there is anything to cut.
func (b *backlog) more() bool { return len(b.todo) > 0 && b.failure == nil }

// idle tells whether nothing is left for a worker and nothing can come back.
func (b *backlog) idle() bool {
	return b.inFlight == 0 && !b.cutting && len(b.ready) == 0 && !b.more()
}

// wantsCut tells whether somebody should cut because fewer batches than low are
// ready. Where the quota is used up, it is asked again when nothing is in flight, or
// after something came back.
func (b *backlog) wantsCut(low int) bool {
	return b.more() && !b.cutting && len(b.ready) < low && (!b.short || b.inFlight == 0 && len(b.ready) == 0)
}

// cutMore cuts the first part. The lock is given up while the server reads.
func (b *backlog) cutMore(ctx context.Context, conn Conn) {
	first, wait := b.todo[0], b.inFlight == 0 && len(b.ready) == 0
	b.todo, b.cutting = b.todo[1:], true
	b.mu.Unlock()
	var cut []*batch
	var rest Window
	err := recoverPanic(ctx, b.log, func() (err error) {
		cut, rest, err = b.read(ctx, conn, &first, wait)
		return err
	})
	b.mu.Lock()
	b.cutting = false
	defer b.changed.Broadcast()
	if err != nil {
		cut, rest = nil, first.window
		if b.short = errors.Is(err, errMaxRows) && !wait; !b.short { // batches in flight may give rows back
			b.stop(err)
		}
	}
	if rest != nil {
		b.todo = slices.Insert(b.todo, 0, part{rest, first.size, first.locked, first.last})
	}
	b.ready = append(b.ready, cut...)
	b.cut += len(cut)
	b.large = b.large || b.cut >= prefetch && b.more() && !b.yields()
	b.mark(cut, rest)
}

// read cuts batches off p, as many as are worth one reading and as the quota allows.
// With wait it waits for rows that other databases may give back.
func (b *backlog) read(ctx context.Context, conn Conn, p *part, wait bool) (cut []*batch, rest Window, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	size := b.size()
	if p.size > 0 {
		size = min(size, p.size)
	}
	most := max(1, min(prefetch, prefetchRows/size))
	if b.sizer.Learning() && p.size == 0 {
		most = 1
	}
	reserved := b.quota.Reserve(int64(size)*int64(most), wait)
	if reserved == 0 {
		return nil, nil, errMaxRows
	}
	defer func() { b.quota.Release(reserved, 0) }() // but for what the batches have
	size, most = int(min(int64(size), reserved)), int(max(1, reserved/int64(size)))
	var batches []Batch
	var locked bool
	err = retryWhileLocked(ctx, func() (err error) {
		batches, rest, err = conn.Cut(ctx, p.window, size, most)
		if errors.Is(err, ErrLocked) { // whatever ends the next try
			locked = true
			b.waits(ctx, conn, err)
		}
		return err
	})
	if err != nil {
		p.locked = p.locked || locked
		return nil, nil, err
	}
	for _, c := range batches {
		c.Most, c.Patient = int64(size), size == 1
		cut = append(cut, &batch{Batch: c, size: size, reserved: int64(size), retried: p.size > 0, locked: p.locked, last: p.last})
		reserved -= int64(size)
	}
	return cut, rest, nil
}

// mark leaves a checkpoint now and then.
func (b *backlog) mark(cut []*batch, rest Window) {
	for _, c := range cut {
		b.trail.Rows += int64(c.size)
		b.unmarked += int64(c.size)
	}
	if rest != nil && b.unmarked >= checkpointRows {
		b.trail.Checkpoints, b.unmarked = append(b.trail.Checkpoints, rest), 0
	}
}

// stop ends the sweep: what is in flight comes back, and what is ready is left aside.
func (b *backlog) stop(why error) {
	b.failure = cmp.Or(b.failure, why)
	for _, c := range b.ready {
		b.quota.Release(c.reserved, 0)
		b.aside = append(b.aside, c.again(0, c.locked))
	}
	b.ready = nil
}

// Waited takes in how long a worker waited for others.
func (b *backlog) Waited(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.throttled += d
}

// stale tells whether a batch is much larger than those that are cut now.
func (b *backlog) stale(c *batch) bool { return c.size >= 2*b.size() }

// GiveBack takes c back from a worker where it is stale, and tells whether it did.
func (b *backlog) GiveBack(c *batch) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.recut([]*batch{c}) != nil {
		return false
	}
	b.inFlight--
	b.changed.Broadcast()
	return true
}

// recut has batches that are stale cut again, and returns the others.
func (b *backlog) recut(batches []*batch) (others []*batch) {
	var parts []part
	for _, c := range batches {
		if !b.stale(c) {
			others = append(others, c)
			continue
		}
		parts = append(parts, c.again(0, c.locked))
		b.quota.Release(c.reserved, 0)
	}
	b.short = b.short && parts == nil
	b.todo = append(parts, b.todo...)
	return others
}

// back ends what Next began for one batch.
func (b *backlog) back(c *batch) {
	b.inFlight--
	b.short = false
	b.quota.Release(c.reserved, c.gone.Rows)
	b.changed.Broadcast()
}

// Done takes in what came of a batch.
func (b *backlog) Done(ctx context.Context, c *batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slow = b.slow || c.isSlow(b.sizer)
	switch {
	case c.err == nil:
		b.refused.inTurn = 0
		b.count(c.gone.Rows)
		if c.gone.More {
			b.todo = slices.Insert(b.todo, 0, c.more())
		}
	case errors.Is(c.err, ErrLost) && !errors.Is(c.err, ErrUncommitted): // until it is known, all of it counts against the quota
		b.quota.Release(c.reserved, c.reserved) // and nobody waits for it
		b.asking, b.aside = append(b.asking, c), append(b.aside, c.again(0, c.locked))
		b.stop(c.err)
		b.inFlight--
		b.changed.Broadcast()
		return
	default:
		b.failed(ctx, c)
	}
	b.back(c)
}

// failed takes in a batch that deleted nothing.
func (b *backlog) failed(ctx context.Context, c *batch) {
	switch {
	case errors.Is(c.err, ErrLocked): // the others first, then this in smaller pieces
		b.todo = append(b.todo, c.again(max(1, c.size/splitInto), true))
	case errors.Is(c.err, ErrOverfull):
		b.overfull(c)
	case errors.Is(c.err, ErrRefused) && (c.size == 1 || c.gone.Stay > 0):
		b.refuse(c)
	case errors.Is(c.err, ErrRefused) && c.retried: // all that was not tried yet has gone
		b.todo = slices.Insert(b.todo, 0, c.again(max(1, c.size/splitInto), c.locked))
	case errors.Is(c.err, ErrRefused), errors.Is(c.err, ErrTimeout) && ctx.Err() == nil && c.size > 1:
		b.todo = append(b.todo, c.again(max(1, c.size/splitInto), c.locked))
	default:
		b.aside = append(b.aside, c.again(0, c.locked))
		b.stop(c.err)
	}
}

// Slow tells whether rows take so long that a batch has few of them.
func (b *backlog) Slow() bool {
	return b.slow || b.sizer.Slow()
}

// count adds a committed batch.
func (b *backlog) count(rows int64) {
	if rows > 0 {
		b.rows += rows
		b.batches++
		b.deleted(rows)
	}
}
