package postgres

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
)

const (
	// serverFirst is how long before the context's deadline the server itself
	// gives a statement up, where there is so much time: then the connection lives
	// on for the final look.
	serverFirst = 250 * time.Millisecond
	// minStatement is the time below which no statement is begun.
	minStatement = 8 * time.Millisecond
)

// plan is how a statement is to read the table: what the planner must not choose
// is off for the time.
type plan struct {
	index, sequence bool
	bounded         bool // no statement takes longer than Server.Longest
}

var (
	byIndex    = plan{index: true}
	byPlace    = plan{}
	inSequence = plan{sequence: true}
)

// limits is how long the server lets a statement run, and how it may plan it.
type limits struct {
	statement, lock time.Duration // 0 is no limit
	plan            plan
	atOnce          int // statements that share the time
	deadline        time.Time
	until           time.Time // they are valid until then; zero is for ever
}

// statements is what a session has for those that it is sent.
type statements struct {
	limits   *limits         // nil is none set
	seen     map[string]bool // sent once
	prepared map[string]*pgconn.StatementDescription
	began    time.Time // the last
	canceled int       // in turn, by somebody else
}

// valid tells whether the limits hold for a statement that is sent now.
func (l *limits) valid(now time.Time) bool { return l.until.IsZero() || !now.After(l.until) }

// serve tells whether the limits hold for so many statements of this plan and
// deadline.
func (l *limits) serve(plan plan, atOnce int, deadline, now time.Time) bool {
	return l != nil && l.plan == plan && l.atOnce >= atOnce && l.deadline.Equal(deadline) && l.valid(now)
}

// linger returns how long what was canceled may take to end.
func (s Server) linger() time.Duration {
	if s.Linger > 0 {
		return min(s.Linger, cancelTimeout)
	}
	return cancelTimeout
}

// prepare makes ready for sql, of which so many may be with the server at once: the
// statement is prepared, and the server will give all of them up in time. Most
// calls find all in place and cost nothing.
func (c *conn) prepare(ctx context.Context, plan plan, sql string, atOnce int) error {
	l, err := c.newLimits(ctx, plan, atOnce)
	if err != nil {
		return err
	}
	if l != nil {
		if err := c.setLimits(ctx, l); err != nil {
			return err
		}
	}
	if c.prepared[sql] == nil {
		statement, err := c.pg.Prepare(ctx, sql, sql)
		if err != nil {
			return err
		}
		c.prepared[sql] = statement
	}
	c.began = time.Now()
	return nil
}

// setLimits has the server keep to l. The limits before it hold until then, and may be so
// short that a moment in which the server is slow is too long, which says nothing about the
// statement that l is for.
func (c *conn) setLimits(ctx context.Context, l *limits) (err error) {
	for range mostCanceled {
		var set pgconn.CommandTag
		set, err = c.pg.Exec(ctx, sqlLimits, c.limitArgs(l)...)
		if err = cmp.Or(err, inSession(set)); err == nil {
			c.limits = l
		}
		if sqlState(err) != pgerrcode.QueryCanceled || ctx.Err() != nil {
			break
		}
	}
	return err
}

// newLimits returns those that so many statements of this plan need, nil where they
// are in place.
func (c *conn) newLimits(ctx context.Context, plan plan, atOnce int) (*limits, error) {
	deadline, _ := ctx.Deadline()
	now := time.Now()
	if c.limits.serve(plan, atOnce, deadline, now) {
		return nil, nil
	}
	l := &limits{lock: c.server.LockTimeout, plan: plan, atOnce: atOnce, deadline: deadline}
	if !deadline.IsZero() {
		left := deadline.Sub(now)
		left -= min(serverFirst, left/4)
		if left < minStatement {
			return nil, purge.ErrTimeout
		}
		// An eighth less than there is, so that the limits need not be set anew
		// until that eighth is over.
		l.statement, l.until = left/8*7/time.Duration(atOnce), now.Add(left/8)
	}
	if longest := c.server.Longest; plan.bounded && longest > 0 && (l.statement == 0 || longest < l.statement) {
		l.statement = longest
	}
	if l.statement > 0 {
		// The lock's time must be up first, else it looks like a slow statement.
		l.lock = min(l.lock, l.statement/10*9)
	}
	return l, nil
}

// limitArgs are the parameters of sqlLimits.
func (c *conn) limitArgs(l *limits) []any {
	return []any{milliseconds(l.statement), milliseconds(l.lock), onOff(l.plan.index), onOff(l.plan.sequence), int64(c.facts.backend)}
}

// inSession returns errPooled where sqlLimits met another session than the run's own.
func inSession(set pgconn.CommandTag) error {
	if set.RowsAffected() == 0 {
		return errPooled
	}
	return nil
}

// once reads the one value that sql returns into dest, unprepared, and sets limits that
// are not nil ahead of it, in one round trip.
func (c *conn) once(ctx context.Context, l *limits, dest any, sql string, args []any) (err error) {
	var batch pgx.Batch
	if l != nil {
		batch.Queue(sqlLimits, c.limitArgs(l)...)
		c.limits = l
	}
	batch.Queue(sql, args...)
	c.began = time.Now()
	results := c.pg.SendBatch(ctx, &batch)
	if l != nil {
		var set pgconn.CommandTag
		set, err = results.Exec()
		err = cmp.Or(err, inSession(set))
	}
	if err == nil {
		err = results.QueryRow().Scan(dest)
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) && l != nil { // they went with the transaction, and tell how long it had
		l.until = c.began
	}
	return err
}

// tookItsTime tells whether the last statement ran for about as long as the server
// lets it.
func (c *conn) tookItsTime() bool {
	return c.limits != nil && c.limits.statement > 0 && time.Since(c.began) >= c.limits.statement/10*9
}

func milliseconds(d time.Duration) string {
	if d > 0 {
		d = max(d, time.Millisecond) // 0 would be no limit
	}
	return strconv.FormatInt(min(d.Milliseconds(), 1<<31-1), 10)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
