package purge

import (
	"context"
	"math/bits"
	"sync"
	"time"
)

// While others write to the same server a run is throttled: batches have leastBatch
// rows, one begins every throttledRest at most, however many connections there are,
// and after each its connection rests for as long as it took, throttledRest at least.
// Both times are slowStart times as long at first and are halved with each slowStep,
// so that nobody feels a small backlog go and a large one is not left to grow. All of
// that ends when the others have been quiet for throttledFor.
const (
	throttledRest = 2 * time.Millisecond
	slowStart     = 32
	slowStep      = 10 * time.Second
	throttledFor  = time.Second
	// fewWrites within throttledFor are nobody's work: a heartbeat, autovacuum.
	fewWrites = 2
	// lookEvery is how often the server is asked at most, and how long a run listens
	// before its first batch: a small backlog would be gone before it has heard anybody.
	lookEvery = 20 * time.Millisecond
	// unanswered is how many batches a connection may have committed without having
	// told of it yet.
	unanswered = 2
)

// throttle tells whether others write to the server at the same time: by the count
// of all transactions that wrote there, of which the run's own are known.
type throttle struct {
	mu      sync.Mutex
	own     int64     // the run's, in all databases
	working int       // connections that are deleting
	looked  time.Time // last
	since   tally     // what the next count is held against
	until   time.Time // the others count as there
	next    time.Time // throttled batch of the run
}

// tally is how many transactions had written at some time.
type tally struct {
	at       time.Time
	all, own int64
}

// look has count ask the server, if it is time to.
func (t *throttle) look(count func() (int64, error)) {
	now := time.Now()
	t.mu.Lock()
	due := now.Sub(t.looked) >= lookEvery
	if due {
		t.looked = now
	}
	// What ends while the server answers may be counted or not. It is taken for the
	// run's own here and below, rather than for another's.
	seen, working := tally{at: now, own: t.own}, t.working
	t.mu.Unlock()
	if !due {
		return
	}
	all, err := count()
	if err != nil || all == 0 { // the next batch tells what is wrong
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	seen.all = all
	ours := t.own - t.since.own + int64(unanswered*max(working, t.working))
	switch others := all - t.since.all - ours; {
	case t.since.at.IsZero(): // the first look
		t.since = seen
	case others > fewWrites:
		t.since, t.until = seen, now.Add(throttledFor)
	case now.Sub(t.since.at) >= throttledFor:
		t.since = seen
	}
}

// others tells whether they are there.
func (t *throttle) others() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.until)
}

// unheard answers how long it takes until a look can tell, after the first one.
func (t *throttle) unheard() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.at.IsZero() { // the server does not tell
		return 0
	}
	return lookEvery - time.Since(t.since.at)
}

// deleting adds to the connections that are at it.
func (t *throttle) deleting(connections int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.working += connections
}

// wrote counts a transaction of the run's own.
func (t *throttle) wrote() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.own++
}

// turn answers how long to wait for the turn of a throttled batch, after which
// there is none for rest.
func (t *throttle) turn(rest time.Duration) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.next.Before(now) {
		t.next = now
	}
	wait := t.next.Sub(now)
	t.next = t.next.Add(rest)
	return wait
}

// throttled tells whether the run is throttled now. It is for half of its turn at
// most, so that a backlog which needs more of it is not left to grow.
func (r *run) throttled() bool {
	return r.throttle.others() && (r.half == 0 || time.Since(r.began) < r.half)
}

// slowness answers how many times as long as at last a throttled run rests now.
func (r *run) slowness() time.Duration {
	step := slowStep
	if r.half > 0 { // all steps and one more fit in it
		step = min(step, r.half/time.Duration(bits.Len(slowStart)))
	}
	return max(1, time.Duration(slowStart)>>(time.Since(r.began)/max(step, 1)))
}

// listen finds out whether there are others before anything is deleted.
func (r *run) listen(ctx context.Context) {
	r.look(ctx, r.reader())
	sleep(ctx, r.throttle.unheard())
	r.look(ctx, r.reader())
}

// look asks the server about others, over a connection that is free, where batches
// may adapt to them.
func (r *run) look(ctx context.Context, c *conn) {
	if r.policy.BatchTarget > 0 {
		r.throttle.look(func() (count int64, err error) {
			err = r.guard(ctx, func() (err error) {
				count, err = c.writes(ctx)
				return err
			})
			return count, err
		})
	}
}
