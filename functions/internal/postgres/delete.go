package postgres

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
)

// locksAhead is how often the longest wait for a lock must fit into the time left,
// for a statement to be sent before the one ahead of it has ended.
const locksAhead = 8

// errNoAnswer is for what ended without an error of its own.
var errNoAnswer = errors.New("the connection ended before the answer")

// Delete implements [purge.Conn].
func (c *conn) Delete(ctx context.Context, b purge.Batch) (gone purge.Deleted, err error) {
	c.DeleteAll(ctx, []purge.Batch{b}, func(d purge.Deleted, e error) { gone, err = d, e })
	return gone, err
}

// DeleteAll implements [purge.Pipeliner].
func (c *conn) DeleteAll(ctx context.Context, batches []purge.Batch, done func(purge.Deleted, error)) {
	for len(batches) > 0 {
		alike := 1
		for alike < len(batches) && isPhysical(batches[alike]) == isPhysical(batches[0]) {
			alike++
		}
		batches = batches[c.deleteAlike(ctx, batches[:alike], done):]
	}
}

func isPhysical(b purge.Batch) bool { return b.Window.(window).physical }

// deleteAlike deletes batches that are all physical, or none, in a pipeline: each
// DELETE is followed by a Sync, which commits it, and one is always sent before
// the answer to the one ahead of it, so that the server need not wait for the
// link. It returns how many batches it got to before its limits had to be set
// anew.
func (c *conn) deleteAlike(ctx context.Context, batches []purge.Batch, done func(purge.Deleted, error)) int {
	plan, sql := byIndex, sqlDelete
	if isPhysical(batches[0]) {
		plan, sql = byPlace, c.physical(sqlDeletePhysical)
	}
	ahead := min(c.mostInFlight(ctx), len(batches))
	if err := c.explain("delete", c.prepare(ctx, plan, sql, ahead)); err != nil {
		for range batches {
			done(purge.Deleted{}, purge.Uncommitted(err))
		}
		return len(batches)
	}
	p := pipeline{Pipeline: c.pg.PgConn().StartPipeline(ctx), conn: c, statement: c.prepared[sql]}
	defer p.Close() //nolint:errcheck // each statement has told its own
	for answered := 0; ; answered++ {
		for p.failure == nil && p.sent < min(answered+ahead, len(batches)) && (p.sent == 0 || c.limits.valid(time.Now())) {
			p.send(batches[p.sent].Window.(window))
		}
		if answered == p.sent {
			if p.failure == nil {
				return p.sent
			}
			done(purge.Deleted{}, purge.Uncommitted(c.explain("delete", p.failure)))
			return p.sent + 1
		}
		rows, err := p.committed()
		if err = c.explain("delete", err); errors.Is(err, purge.ErrLost) && !errors.Is(err, purge.ErrUncommitted) {
			rows = batches[answered].Rows
		}
		done(purge.Deleted{Rows: rows}, err)
		c.began = time.Now()
	}
}

// mostInFlight returns how many statements may be with the server at once: two, where
// both end in time even if each meets a lock.
func (c *conn) mostInFlight(ctx context.Context) int {
	deadline, limited := ctx.Deadline()
	if limited && time.Until(deadline) < locksAhead*c.server.LockTimeout {
		return 1
	}
	return 2
}

// pipeline sends one statement again and again, ahead of the answers.
type pipeline struct {
	*pgconn.Pipeline
	conn      *conn
	statement *pgconn.StatementDescription
	encoded   pgx.ExtendedQueryBuilder
	sent      int   // whole, with the Sync that commits it
	failure   error // of the last that was sent
}

func (p *pipeline) send(w window) {
	p.failure = p.encoded.Build(p.conn.pg.TypeMap(), p.statement, w.args())
	if p.failure == nil {
		p.SendQueryStatement(p.statement, p.encoded.ParamValues, p.encoded.ParamFormats, p.encoded.ResultFormats)
		p.failure = p.Sync()
	}
	if p.failure == nil {
		p.sent++
	}
}

// committed reads the answer to a statement and to the Sync behind it.
func (p *pipeline) committed() (rows int64, failure error) {
	for {
		switch result, err := p.GetResults(); answer := result.(type) {
		case *pgconn.ResultReader:
			tag, err := answer.Close()
			rows, failure = tag.RowsAffected(), err
		case *pgconn.PipelineSync:
			if failure != nil {
				return 0, failure
			}
			return rows, nil
		default:
			var refused *pgconn.PgError
			if failure = cmp.Or(failure, err, errNoAnswer); !errors.As(err, &refused) {
				return 0, failure
			}
		}
	}
}
