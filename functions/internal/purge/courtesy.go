package purge

import (
	"context"
	"sync"
	"time"
)

// What a run does while others write to the same server: one batch of leastBatch
// rows at a time, however many connections it has, and after each a rest of as long
// as it took, politeRest at least. It goes back to work when they have been quiet for
// politeFor.
const (
	politeRest = 2 * time.Millisecond
	politeFor  = time.Second
	// fewWrites within politeFor are nobody to make way for: a heartbeat, autovacuum.
	fewWrites = 2
	// lookEvery is how often the server is asked at most.
	lookEvery = 20 * time.Millisecond
	// unanswered is how many batches a connection may have committed without having
	// told of it yet.
	unanswered = 2
)

// courtesy tells whether others write to the server at the same time: by the count
// of all transactions that wrote there, of which the run's own are known.
type courtesy struct {
	mu      sync.Mutex
	own     int64     // the run's, in all databases
	working int       // connections that are deleting
	looked  time.Time // last
	since   tally     // what the next count is held against
	until   time.Time // the others count as there
	next    time.Time // polite batch of the run
}

// tally is how many transactions had written at some time.
type tally struct {
	at       time.Time
	all, own int64
}

// look has count ask the server, if it is time to.
func (c *courtesy) look(count func() (int64, error)) {
	now := time.Now()
	c.mu.Lock()
	due := now.Sub(c.looked) >= lookEvery
	if due {
		c.looked = now
	}
	// What ends while the server answers may be counted or not. It is taken for the
	// run's own here and below, rather than for another's.
	seen, working := tally{at: now, own: c.own}, c.working
	c.mu.Unlock()
	if !due {
		return
	}
	all, err := count()
	if err != nil || all == 0 { // the next batch tells what is wrong
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	seen.all = all
	ours := c.own - c.since.own + int64(unanswered*max(working, c.working))
	switch others := all - c.since.all - ours; {
	case c.since.at.IsZero(): // the first look
		c.since = seen
	case others > fewWrites:
		c.since, c.until = seen, now.Add(politeFor)
	case now.Sub(c.since.at) >= politeFor:
		c.since = seen
	}
}

// others tells whether they are there.
func (c *courtesy) others() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.until)
}

// deleting adds to the connections that are at it.
func (c *courtesy) deleting(connections int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working += connections
}

// wrote counts a transaction of the run's own.
func (c *courtesy) wrote() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own++
}

// turn answers how long to wait for the turn of a polite batch.
func (c *courtesy) turn() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.next.Before(now) {
		c.next = now
	}
	wait := c.next.Sub(now)
	c.next = c.next.Add(politeRest)
	return wait
}

// polite tells whether the run makes way for others now: for half of the time it
// has, so that a backlog which needs more of it is not left to grow.
func (r *run) polite() bool {
	return r.courtesy.others() && (r.hurry.IsZero() || time.Now().Before(r.hurry))
}

// look asks the server about others, over a connection that is free, where batches
// may adapt to them.
func (r *run) look(ctx context.Context, c *conn) {
	if r.policy.BatchTarget > 0 {
		r.courtesy.look(func() (count int64, err error) {
			err = r.guard(ctx, func() (err error) {
				count, err = c.writes(ctx)
				return err
			})
			return count, err
		})
	}
}
