package sqlserver

import (
	"context"
	"fmt"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

const (
	// serverFirst is how long before the context's deadline the server is told to
	// give a statement up, where there is so much time: then the connection lives
	// on for the final look.
	serverFirst = 250 * time.Millisecond
	// minStatement is the time below which no statement is begun.
	minStatement = 8 * time.Millisecond
	// shortWait is from when on a wait for a lock is long enough for any statement: a
	// look that comes between two deletes, which may wait for less, does with theirs.
	shortWait = 100 * time.Millisecond
)

// limits is how long the server lets a statement wait.
type limits struct{ lock time.Duration }

// valid tells whether the limits do for a statement that needs those of need.
func (l *limits) valid(need limits) bool {
	return l != nil && l.lock <= need.lock && l.lock >= min(shortWait, need.lock/2)
}

// linger returns how long what was canceled may take to end.
func (s Server) linger() time.Duration {
	if s.Linger > 0 {
		return min(s.Linger, cancelTimeout)
	}
	return cancelTimeout
}

// mostWait returns how long a statement may wait for a lock: that must be over first,
// else it looks like a slow statement.
func (c *conn) mostWait(ctx context.Context) time.Duration {
	deadline, limited := ctx.Deadline()
	if !limited {
		return c.server.LockTimeout
	}
	left := time.Until(deadline)
	return min(c.server.LockTimeout, (left-min(serverFirst, left/4))/10*9)
}

// prepare makes ready for a statement: the server will be told to give it up in
// time, and gives up earlier where it waits for a lock. Most calls find all in
// place and cost nothing.
func (c *conn) prepare(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if ctx.Err() != nil { // the driver would send it all the same
		return nil, nil, purge.ErrTimeout
	}
	l := limits{c.mostWait(ctx)}
	deadline, limited := ctx.Deadline()
	if !limited {
		return ctx, func() {}, c.limit(ctx, l, time.Time{})
	}
	left := time.Until(deadline)
	left -= min(serverFirst, left/4)
	if left < minStatement {
		return nil, nil, purge.ErrTimeout
	}
	// Not WithTimeout: the driver gives a connection up whose context ends by its
	// deadline, even where the server has confirmed the cancellation.
	inTime, cancel := context.WithCancel(context.WithoutCancel(ctx))
	timer, stop := time.AfterFunc(left, cancel), context.AfterFunc(ctx, cancel)
	end := func() { timer.Stop(); stop(); cancel() }
	if err := c.limit(inTime, l, deadline.Add(c.server.linger())); err != nil {
		err = late(inTime, err)
		end()
		return nil, nil, err
	}
	return inTime, end, nil
}

// limit has the server keep l, and ends the connection at drop: a network that
// swallows everything answers no cancellation either.
func (c *conn) limit(ctx context.Context, l limits, drop time.Time) error {
	if err := c.wire.SetDeadline(drop); err != nil {
		return err
	}
	if c.limits.valid(l) {
		return nil
	}
	if l.lock < c.server.LockTimeout { // less, so that it need not be set anew each time
		l.lock = l.lock / 4 * 3
	}
	_, err := c.session.ExecContext(ctx, fmt.Sprintf(sqlLimits, milliseconds(l.lock))) // no parameter can stand here
	if err == nil {
		c.limits = &l
	}
	return err
}

// late returns ErrTimeout for an error that came of the end of ctx.
func late(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", purge.ErrTimeout, ctx.Err())
	}
	return err
}

func milliseconds(d time.Duration) int64 {
	return min(max(d.Milliseconds(), 1), 1<<31-1) // 0 would be no wait at all
}
