package purge

import (
	"context"
	"time"
)

// conn is a connection to a table that reads and deletes in turn: calls that come
// at the same time wait for each other.
type conn struct {
	table Table
	turn  chan struct{} // a mutex that the clock of a test can see waiting
}

func newConn(t Table) *conn { return &conn{t, make(chan struct{}, 1)} }

func (c *conn) lock()   { c.turn <- struct{}{} }
func (c *conn) unlock() { <-c.turn }

func (c *conn) oldest(ctx context.Context, r Range) (time.Time, Range, error) {
	c.lock()
	defer c.unlock()
	return c.table.Oldest(ctx, r)
}

func (c *conn) count(ctx context.Context, r Range) (int64, error) {
	c.lock()
	defer c.unlock()
	return c.table.Count(ctx, r)
}

func (c *conn) next(ctx context.Context, r Range, n int) (Batch, Range, error) {
	c.lock()
	defer c.unlock()
	return c.table.Next(ctx, r, n)
}

func (c *conn) writes(ctx context.Context) (int64, error) {
	c.lock()
	defer c.unlock()
	return c.table.Writes(ctx)
}

// delete also tells how long each statement took, its turn not counted.
func (c *conn) delete(ctx context.Context, batches []Range, answer func(rows int64, took time.Duration, err error)) {
	c.lock()
	defer c.unlock()
	start := time.Now()
	c.table.Delete(ctx, batches, func(rows int64, err error) {
		now := time.Now()
		answer(rows, now.Sub(start), err)
		start = now
	})
}
