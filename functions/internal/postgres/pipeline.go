package postgres

import (
	"cmp"
	"context"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
)

// locksAhead is how often the longest wait for a lock must fit into the time left,
// for a batch to be sent before the one ahead of it has ended.
const locksAhead = 8

// errEnded is for what ended without an error of its own.
var errEnded = errors.New("the connection ended before the answer")

// deleteAlike deletes first, and those that follow while they have the same form and its
// limits hold, in a pipeline: each DELETE has sqlTransaction ahead of it, sqlProve behind
// it, and then a Sync, which commits. One is always begun before the one ahead of it has
// ended, so that the server need not wait for the link, and committed once that one is
// acknowledged, which comes in time: the server is still deleting. So where the connection
// is lost, one batch at most may have been committed without a word. It returns the first
// batch that it leaves, if there is one.
func (c *conn) deleteAlike(ctx context.Context, first purge.Batch, next func() (purge.Batch, bool), done func(purge.Deleted, error)) (other purge.Batch, more bool) {
	f := formOf(first)
	plan, sql, prove := c.deleting(f.physical)
	plan.bounded = !f.patient
	atOnce := c.mostInFlight(ctx)
	var err error
	for _, statement := range []string{sqlTransaction, prove, sql} {
		if err == nil {
			err = c.prepare(ctx, plan, statement, atOnce)
		}
	}
	if err != nil {
		done(purge.Deleted{}, purge.Uncommitted(c.explain("delete", err)))
		return next()
	}
	p := pipeline{Pipeline: c.pg.PgConn().StartPipeline(ctx), conn: c, form: f, next: next, transaction: c.prepared[sqlTransaction], delete: c.prepared[sql], prove: c.prepared[prove]}
	defer p.Close() //nolint:errcheck // each statement has told its own
	for p.begin(first); p.begun > 0; {
		gone, err := p.end(atOnce > 1)
		done(gone, err)
		if c.began = time.Now(); c.pg.IsClosed() {
			p.undone(done, err)
			return other, false
		}
		p.beginNext()
	}
	if p.other != nil {
		return *p.other, true
	}
	return next()
}

// mostInFlight returns how many batches may be with the server at once: two, where
// both end in time even if each meets a lock.
func (c *conn) mostInFlight(ctx context.Context) int {
	deadline, limited := ctx.Deadline()
	if limited && time.Until(deadline) < locksAhead*c.server.LockTimeout {
		return 1
	}
	return 2
}

// pipeline sends the same statements again and again, ahead of the answers.
type pipeline struct {
	*pgconn.Pipeline
	conn    *conn
	form    form
	next    func() (purge.Batch, bool)
	other   *purge.Batch // that came, and is of another form
	encoded pgx.ExtendedQueryBuilder
	begun   int   // batches whose statements are on their way
	failure error // of the last that was to begin

	transaction, delete, prove *pgconn.StatementDescription
}

// beginNext queues the statements of the next batch, if none is on its way, there is one
// of this form, and the limits hold still.
func (p *pipeline) beginNext() {
	if p.begun > 0 || p.other != nil || p.failure != nil || !p.conn.limits.valid(time.Now()) {
		return
	}
	switch b, more := p.next(); {
	case more && formOf(b) == p.form:
		p.begin(b)
	case more:
		p.other = &b
	}
}

func (p *pipeline) begin(b purge.Batch) {
	most := b.Most
	if most == 0 {
		most = math.MaxInt64
	}
	facts := p.conn.facts
	p.queue(p.transaction, nil)
	p.SendFlushRequest()
	p.queue(p.delete, b.Window.(window).args(facts.signature))
	if facts.acts && p.failure == nil {
		p.SendQueryParams(sqlRunDeferred, nil, nil, nil, nil)
	}
	p.queue(p.prove, []any{facts.leaves, most})
	p.begun++
}

// end commits the batch that has begun, and returns what came of it. With ahead the next
// one begins meanwhile.
func (p *pipeline) end(ahead bool) (gone purge.Deleted, err error) {
	p.begun--
	if err = p.failure; err == nil {
		err = p.Sync()
	}
	if err != nil { // it did not get through
		return gone, purge.Uncommitted(p.conn.explain("delete", err))
	}
	transaction, err := p.number()
	if ahead && err == nil {
		p.beginNext()
		err = p.Flush()
	}
	gone, err = p.answer(err)
	if err = p.conn.explain("delete", err); err != nil && (!errors.Is(err, purge.ErrLost) || errors.Is(err, purge.ErrUncommitted)) {
		return purge.Deleted{}, err
	}
	gone.Transaction = transaction
	return gone, err
}

// undone tells of what had come and was not sent to its end before the connection was lost.
func (p *pipeline) undone(done func(purge.Deleted, error), err error) {
	if p.begun > 0 || p.other != nil {
		done(purge.Deleted{}, purge.Uncommitted(cmp.Or(err, p.conn.explain("delete", errEnded))))
	}
}

func (p *pipeline) queue(statement *pgconn.StatementDescription, args []any) {
	if p.failure != nil {
		return
	}
	if p.failure = p.encoded.Build(p.conn.pg.TypeMap(), statement, args); p.failure == nil {
		// Not SendQueryStatement: after an error it takes the answer to the next batch
		// for that to the statement which the server skipped.
		p.SendQueryPrepared(statement.Name, p.encoded.ParamValues, p.encoded.ParamFormats, nil)
	}
}

// number reads the answer to the first statement of a batch, which the server sends ahead
// of all others.
func (p *pipeline) number() (transaction uint64, failure error) {
	answer, failure := p.GetResults()
	reader, ok := answer.(*pgconn.ResultReader)
	if !ok {
		return 0, failure
	}
	for reader.NextRow() {
		transaction, _ = strconv.ParseUint(string(reader.Values()[0]), 10, 64) // an integer alone
	}
	_, failure = reader.Close()
	return transaction, failure
}

// answer reads the answers to the other statements of a batch and to the Sync behind
// them; the failure is that of the first. Where the connection is lost after the last
// statement, what that said is returned beside the error.
func (p *pipeline) answer(failure error) (gone purge.Deleted, _ error) {
	gone.Rows = -1
	for {
		switch result, err := p.GetResults(); answer := result.(type) {
		case *pgconn.ResultReader:
			for answer.NextRow() {
				if values := answer.Values(); len(values) == proofs {
					gone = p.conn.proved(values)
				}
			}
			_, err = answer.Close()
			failure = cmp.Or(failure, err)
		case *pgconn.PipelineSync:
			if failure == nil {
				p.conn.canceled = 0
			}
			return gone, failure
		default:
			var refused *pgconn.PgError
			if failure = cmp.Or(failure, err, errEnded); !errors.As(err, &refused) {
				return gone, failure
			}
		}
	}
}
