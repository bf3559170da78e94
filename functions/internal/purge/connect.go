package purge

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// openTimeout is how long a database that can be reached takes to open at most. It has
// that time even where its share is less.
const openTimeout = 2 * time.Second

// A connection that is lost in the middle of a run is opened anew, first after
// minBackoff, then after twice that and so on, for reconnectTimeout: a server that
// restarts or fails over is back by then. One that is lost mostLosses times without a
// batch committed in between is given up: it may be this very work that ends it.
const (
	minBackoff       = 200 * time.Millisecond
	maxBackoff       = 10 * time.Second
	reconnectTimeout = 2 * time.Minute
	mostLosses       = 5
)

// connections are those of one turn.
type connections struct {
	conn       Conn          // holds the database's lock
	more       []Conn        // that delete as well
	prefetcher Conn          // that cuts ahead, if there is one to spare
	scaledOut  bool          // there are as many as there can be
	opening    time.Duration // what the first took
}

// disconnection is for how long there has been no connection, and how often that was.
type disconnection struct {
	disconnectedAt time.Time // zero while there is one
	backoff        time.Duration
	losses         int // without a batch committed in between
	batches        int // committed until the last of them
}

// connect opens the connection that holds the database's lock.
func (t *turn) connect(work context.Context, share time.Duration) ending {
	start := time.Now()
	e := ending{action: t.run.policy.Action, overrun: t.run.overrun, matched: t.visit.database.Matched || len(t.visit.turns) > 1, wasOpen: t.result.Cutoff != nil}
	if e.err = work.Err(); e.err != nil {
		e.timeout = true
		return e
	}
	patience, cancel := withOptionalTimeout(work, max(share, openTimeout), share > 0)
	defer cancel()
	e.err = recoverPanic(patience, t.log, func() (err error) {
		t.conn, err = t.visit.take(patience, t.table)
		if t.conn == nil && err == nil {
			t.conn, err = t.enter(patience, t.run.policy.Action == Purge)
		}
		return err
	})
	t.opening = time.Since(start)
	if e.opened = e.err == nil; e.opened {
		e.wasOpen = true
		t.result.Findings = t.run.findings() // of this turn
		return e
	}
	// A database that was open before is there, unless it was lost, and one that is
	// there opens soon. Any other may be out of reach, which must not look like too
	// little time.
	there := t.opening < openTimeout
	if e.wasOpen {
		there = t.disconnectedAt.IsZero()
	}
	cut := patience.Err() != nil
	e.timeout, e.shareOver = cut && there, cut && work.Err() == nil
	if cut && t.disconnectedAt.IsZero() { // the server may still be about to let it in
		t.disconnectedAt = time.Now()
	}
	e.stale = t.isOwnStaleSession()
	return e
}

// isOwnStaleSession tells whether the run that holds the database may be a session of
// ours that the server has not given up yet: one that was lost, or cut while it opened.
func (t *turn) isOwnStaleSession() bool {
	return !t.disconnectedAt.IsZero() && (t.result.Cutoff != nil || time.Since(t.disconnectedAt) < maxBackoff)
}

// backoffAfterDisconnect rests before another try to connect, and tells whether there
// is patience for one.
func (t *turn) backoffAfterDisconnect(work context.Context, err error) bool {
	if t.backlog.batches > t.batches { // there was progress
		t.batches, t.losses, t.backoff = t.backlog.batches, 0, 0
	}
	if t.disconnectedAt.IsZero() {
		t.disconnectedAt = time.Now()
		t.losses++
	}
	if t.losses > mostLosses || !t.patient(err) {
		return false
	}
	t.backoff = min(max(2*t.backoff, minBackoff), maxBackoff)
	rest := t.backoff/2 + rand.N(t.backoff/2) // several that ask at once would be in each other's way again
	t.log.WarnContext(work, "no connection", "error", err.Error(), "againInMs", rest.Milliseconds())
	t.waits(inBrief(err))
	sleep(work, rest)
	t.waits("")
	return work.Err() == nil
}

// inBrief says why there is no connection, in as few words as a line has room for.
func inBrief(err error) string {
	for _, known := range []error{ErrNotYet, ErrNoSlot, ErrAlreadyRunning, ErrLost} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

// patient tells whether there is time for another try to connect after err.
func (t *turn) patient(err error) bool {
	switch wasOpen := t.result.Cutoff != nil; {
	case errors.Is(err, ErrNoSlot): // as long as there is time at all
		return true
	case wasOpen || errors.Is(err, ErrAlreadyRunning):
		return time.Since(t.disconnectedAt) < reconnectTimeout
	default: // once for all databases
		return time.Since(t.run.began) < t.run.policy.ConnectTimeout
	}
}

// open opens a connection to the table.
func (t *turn) open(ctx context.Context, lock bool) (Conn, error) {
	return t.run.target.Engine.Open(ctx, t.visit.database.Name, t.table, lock)
}

// enter opens the connection that a database is served by, unless the server has none to
// spare.
func (t *turn) enter(ctx context.Context, lock bool) (Conn, error) {
	conn, err := t.open(ctx, lock)
	if err != nil {
		t.run.slots.failed(err)
		return nil, err
	}
	if err := t.run.slots.enter(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// addConns gives a large backlog as many connections as may delete at once, and one
// to cut ahead where fewer databases want a turn than may have one. Those that delete
// begin as soon as they are there. Where the server has none to spare, fewer do it all.
func (t *turn) addConns(ctx context.Context, begin func(Conn)) {
	t.scaledOut = true
	for len(t.more) < t.run.policy.Concurrency-1 {
		conn := t.tryAcquire(ctx)
		if conn == nil {
			return
		}
		t.more = append(t.more, conn)
		begin(conn)
	}
	if t.run.schedule.spare() {
		t.prefetcher = t.tryAcquire(ctx)
	}
}

// tryAcquire opens one connection more; nil where there is none to spare.
func (t *turn) tryAcquire(ctx context.Context) (conn Conn) {
	if !t.run.slots.TryAcquire(1) {
		return nil
	}
	err := recoverPanic(ctx, t.log, func() (err error) {
		if conn, err = t.open(ctx, false); err == nil {
			err = t.run.slots.enter(ctx, conn)
		}
		return err
	})
	if err != nil {
		t.run.slots.Release(1)
		if conn != nil {
			conn.Close()
		}
		if ctx.Err() == nil {
			t.log.WarnContext(ctx, "no further connection", "error", err.Error())
		}
		return nil
	}
	return conn
}

// others are all connections but the one that holds the lock.
func (t *turn) others() []Conn {
	others := slices.Clone(t.more)
	if t.prefetcher != nil {
		others = append(others, t.prefetcher)
	}
	return others
}

// close ends all connections at once: each may take a moment.
func (t *turn) close(ctx context.Context) {
	all := t.others()
	if t.visit.wanting > 1 && t.result.reached { // the next table goes on with it
		t.visit.conn = t.conn
	} else {
		all = append(all, t.conn)
	}
	t.run.slots.leave(len(all))
	var closing sync.WaitGroup
	for _, conn := range all {
		closing.Go(func() {
			recoverPanic(ctx, t.log, func() error { conn.Close(); return nil }) //nolint:errcheck // logged; every batch is committed
		})
	}
	closing.Wait()
	t.run.slots.Release(int64(len(t.others()))) // that of conn is the visit's
	t.connections = connections{}
}
