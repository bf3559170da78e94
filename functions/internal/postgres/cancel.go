package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// canceling is how long a request to cancel may take. It is longer than PgBouncer
// keeps one by default, so that the server's side ends it.
const canceling = 15 * time.Second

// canceler has the server end what is under way when its context ends.
//
// The driver's own handler closes the request's connection when the statement ends
// meanwhile. A PgBouncer from 1.18.0 to 1.19.0 ends at that, with all of its clients.
type canceler struct {
	conn   *pgconn.PgConn
	linger time.Duration // the statement may take to end
	until  time.Time     // it may
	done   chan struct{} // is closed when the request was handled
}

// HandleCancel implements [ctxwatch.Handler].
func (c *canceler) HandleCancel(context.Context) {
	done := make(chan struct{})
	c.done, c.until = done, time.Now().Add(c.linger)
	c.conn.Conn().SetDeadline(c.until) //nolint:errcheck // the statement says it
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), canceling)
		defer cancel()
		c.conn.CancelRequest(ctx) //nolint:errcheck // the deadline ends what it does not
	}()
}

// HandleUnwatchAfterCancel implements [ctxwatch.Handler]. It waits, within the
// statement's time, until the request can't meet the next statement.
func (c *canceler) HandleUnwatchAfterCancel() {
	select {
	case <-c.done:
		// The process may hear of it a moment after the request was handled.
		time.Sleep(min(100*time.Millisecond, time.Until(c.until)))
	case <-time.After(time.Until(c.until)):
	}
	c.conn.Conn().SetDeadline(time.Time{}) //nolint:errcheck // the next statement says it
}
