package purge

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

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
	open  func(ctx context.Context, lock bool) (Conn, error)
	slots *slots
	log   *slog.Logger

	conn       Conn          // holds the database's lock
	more       []Conn        // that delete as well
	prefetcher Conn          // that cuts ahead, if there is one to spare
	scaledOut  bool          // there are as many as there can be
	opening    time.Duration // what the first took
}

// disconnection is for how long there has been no connection to a database, and how often
// that was.
type disconnection struct {
	disconnectedAt time.Time // zero while there is one
	backoff        time.Duration
	losses         int // without a batch committed in between
	committed      int // batches until the last of them
}

// lostTooOften takes note that there is no connection after so many committed batches, and
// tells whether that has been so too often.
func (d *disconnection) lostTooOften(batches int) bool {
	if batches > d.committed { // there was progress
		d.committed, d.losses, d.backoff = batches, 0, 0
	}
	if d.disconnectedAt.IsZero() {
		d.disconnectedAt = time.Now()
		d.losses++
	}
	return d.losses > mostLosses
}

// rest returns how long to rest before another try.
func (d *disconnection) rest() time.Duration {
	d.backoff = min(max(2*d.backoff, minBackoff), maxBackoff)
	return d.backoff/2 + rand.N(d.backoff/2) // several that ask at once would be in each other's way again
}

// openFirst opens the connection that a database is served by, unless the server has none
// to spare.
func (c *connections) openFirst(ctx context.Context, lock bool) (Conn, error) {
	conn, err := c.open(ctx, lock)
	if err != nil {
		c.slots.failed(err)
		return nil, err
	}
	if err := c.slots.enter(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// scaleOut opens so many connections more, which begin as soon as they are there, and one
// to cut ahead where that is wanted. Where the server has none to spare, there are fewer.
func (c *connections) scaleOut(ctx context.Context, most int, begin func(Conn), ahead func() bool) {
	c.scaledOut = true
	for len(c.more) < most {
		conn := c.tryAcquire(ctx)
		if conn == nil {
			return
		}
		c.more = append(c.more, conn)
		begin(conn)
	}
	if ahead() {
		c.prefetcher = c.tryAcquire(ctx)
	}
}

// tryAcquire opens one connection more; nil where there is none to spare.
func (c *connections) tryAcquire(ctx context.Context) (conn Conn) {
	if !c.slots.TryAcquire(1) {
		return nil
	}
	err := recoverPanic(ctx, c.log, func() (err error) {
		if conn, err = c.open(ctx, false); err == nil {
			err = c.slots.enter(ctx, conn)
		}
		return err
	})
	if err != nil {
		c.slots.Release(1)
		if conn != nil {
			conn.Close()
		}
		if ctx.Err() == nil {
			c.log.WarnContext(ctx, "no further connection", "error", err.Error())
		}
		return nil
	}
	return conn
}

// others are all connections but the one that holds the lock.
func (c *connections) others() []Conn {
	others := slices.Clone(c.more)
	if c.prefetcher != nil {
		others = append(others, c.prefetcher)
	}
	return others
}

// close ends all connections at once: each may take a moment. The slot of the first is
// another's to release.
func (c *connections) close(ctx context.Context) {
	all := c.others()
	others := len(all)
	if c.conn != nil {
		all = append(all, c.conn)
	}
	c.slots.leave(len(all))
	var closing sync.WaitGroup
	for _, conn := range all {
		closing.Go(func() {
			recoverPanic(ctx, c.log, func() error { conn.Close(); return nil }) //nolint:errcheck // logged; every batch is committed
		})
	}
	closing.Wait()
	c.slots.Release(int64(others))
	c.conn, c.more, c.prefetcher, c.scaledOut = nil, nil, nil, false
}
