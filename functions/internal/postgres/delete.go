package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"edfi-token-purge/functions/internal/purge"
)

// locksAhead is how often the longest wait for a lock must fit into the time left,
// for a batch to be sent before the one ahead of it has ended.
const locksAhead = 8

// errNoAnswer is for what ended without an error of its own.
var errNoAnswer = errors.New("the connection ended before the answer")

// Delete implements [purge.Conn].
func (c *conn) Delete(ctx context.Context, b purge.Batch) (gone purge.Deleted, err error) {
	c.DeleteAll(ctx, []purge.Batch{b}, func(d purge.Deleted, e error) bool { gone, err = d, e; return true })
	return gone, err
}

// DeleteAll implements [purge.Pipeliner].
func (c *conn) DeleteAll(ctx context.Context, batches []purge.Batch, done func(purge.Deleted, error) bool) {
	more := true
	next := func(gone purge.Deleted, err error) bool {
		more = done(gone, err) && more
		return more
	}
	for len(batches) > 0 && more {
		if batches[0].Window.(window).scanned {
			next(c.deleteScanned(ctx, batches[0]))
			batches = batches[1:]
			continue
		}
		alike := 1
		for alike < len(batches) && formOf(batches[alike]) == formOf(batches[0]) {
			alike++
		}
		batches = batches[c.deleteAlike(ctx, batches[:alike], formOf(batches[0]), next):]
	}
}

// Committed implements [purge.Witness]. A number that the server has yet to give went
// with a crash, and its transaction with it.
func (c *conn) Committed(ctx context.Context, transaction uint64) (bool, error) {
	var status string
	err := c.row(ctx, byIndex, &status, sqlCommitted, strconv.FormatUint(transaction, 10))
	switch {
	case sqlState(err) == pgerrcode.InvalidParameterValue:
		return false, nil
	case status == "in progress":
		return false, purge.ErrLocked
	}
	return status == "committed", c.explain("ask what became of a batch", err)
}

// form is what batches must have in common to be sent one after the other.
type form struct{ physical, scanned, patient bool }

func formOf(b purge.Batch) form {
	w := b.Window.(window)
	return form{w.physical, w.scanned, b.Patient}
}

// deleteAlike deletes batches of one form in a pipeline: each DELETE has sqlTransaction
// ahead of it, sqlProve behind it, and then a Sync, which commits. One is always sent
// before the one ahead of it has ended, so that the server need not wait for the link, and
// never before the transaction of that one is known: where the connection is lost, the
// server says of all but the last what became of them. It returns how many batches it
// got to before its limits had to be set anew, or no more were wanted.
func (c *conn) deleteAlike(ctx context.Context, batches []purge.Batch, f form, done func(purge.Deleted, error) bool) int {
	plan, sql, prove := c.deleting(f.physical)
	plan.bounded = !f.patient
	ahead := min(c.mostInFlight(ctx), len(batches))
	var err error
	for _, statement := range []string{sqlTransaction, prove, sql} {
		err = cmp.Or(err, c.prepare(ctx, plan, statement, ahead))
	}
	if err = c.explain("delete", err); err != nil {
		for range batches {
			done(purge.Deleted{}, purge.Uncommitted(err))
		}
		return len(batches)
	}
	p := pipeline{Pipeline: c.pg.PgConn().StartPipeline(ctx), conn: c, transaction: c.prepared[sqlTransaction], delete: c.prepared[sql], prove: c.prepared[prove]}
	defer p.Close() //nolint:errcheck // each statement has told its own
	for answered, more := 0, true; ; answered++ {
		if more && p.sent == answered {
			p.sendNext(batches)
		}
		if answered == p.sent {
			if p.failure == nil {
				return p.sent
			}
			done(purge.Deleted{}, purge.Uncommitted(c.explain("delete", p.failure)))
			return p.sent + 1
		}
		transaction, err := p.begun()
		if more && ahead > 1 && err == nil {
			p.sendNext(batches)
		}
		gone, err := p.committed(err)
		gone.Transaction = transaction
		if err = c.explain("delete", err); err != nil && (!errors.Is(err, purge.ErrLost) || errors.Is(err, purge.ErrUncommitted)) {
			gone = purge.Deleted{}
		}
		more = done(gone, err)
		c.began = time.Now()
	}
}

// deleting returns the statements that delete a batch and prove it.
func (c *conn) deleting(physical bool) (plan plan, sql, prove string) {
	plan, sql = byIndex, c.facts.on(sqlDelete)
	if physical {
		plan, sql = byPlace, c.physical(sqlDeletePhysical)
	}
	if !c.facts.counted {
		sql = fmt.Sprintf(sqlReturning, sql)
	}
	return plan, sql, c.proving()
}

// proving returns the statement that proves a batch.
func (c *conn) proving() string {
	if !c.facts.counted {
		return sqlProveReturning
	}
	return sqlProve
}

// Rehearse implements [purge.Rehearser].
func (c *conn) Rehearse(ctx context.Context, b purge.Batch) (rows, gone int64, err error) {
	w := b.Window.(window)
	plan, sql, prove := c.deleting(w.physical)
	if err := c.prepare(ctx, plan, sql, 1); err != nil {
		return b.Rows, gone, c.explain("try to delete", err)
	}
	undone := errors.New("undone")
	err = pgx.BeginFunc(ctx, c.pg, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sql, w.args(c.facts.signature)...); err != nil {
			return err
		}
		if err := c.runDeferred(ctx, tx); err != nil {
			return err
		}
		var micros, writes int64
		if err := tx.QueryRow(ctx, prove, c.facts.leaves, int64(math.MaxInt64)).Scan(&gone, &micros, &writes); err != nil {
			return err
		}
		return undone
	})
	if errors.Is(err, undone) {
		err = nil
	}
	return b.Rows, gone, c.explain("try to delete", err)
}

// deleteScanned deletes a batch of rows as they are met. Where one of them resists, it
// is tried once more, with care for the others.
func (c *conn) deleteScanned(ctx context.Context, b purge.Batch) (purge.Deleted, error) {
	gone, err := c.scanOnce(ctx, b)
	if !c.careful && (errors.Is(err, purge.ErrLocked) || errors.Is(err, purge.ErrRefused) || errors.Is(err, purge.ErrTimeout)) {
		c.careful = true
		gone, err = c.scanOnce(ctx, b)
	}
	if errors.Is(err, purge.ErrRefused) && c.stuck != b.Rows { // cut anew, it says how many they are
		err = purge.ErrOverfull
	}
	return gone, err
}

// scanOnce ends by itself well before the server would give it up.
func (c *conn) scanOnce(ctx context.Context, b purge.Batch) (gone purge.Deleted, err error) {
	plan, prove := c.scan(), c.proving()
	plan.bounded = !b.Patient
	if err := c.prepare(ctx, plan, prove, 1); err != nil {
		return gone, purge.Uncommitted(c.explain("delete", err))
	}
	limit := time.Minute
	if c.limits.statement > 0 {
		limit = c.limits.statement / 2
	}
	most := b.Most
	if most == 0 {
		most = math.MaxInt64
	}
	tx, err := c.pg.Begin(ctx)
	if err != nil {
		return gone, purge.Uncommitted(c.explain("delete", err))
	}
	defer tx.Rollback(ctx) //nolint:errcheck // where it was not committed, the server does the same
	met, err := c.deleteMet(ctx, tx, b.Window.(window), most, limit)
	values := make([][]byte, proofs)
	if err == nil {
		err = c.runDeferred(ctx, tx)
	}
	if err == nil {
		err = tx.QueryRow(ctx, prove, pgx.QueryResultFormats{pgx.TextFormatCode}, c.facts.leaves, most).Scan(&values[0], &values[1], &values[2])
	}
	if err != nil {
		return gone, purge.Uncommitted(c.explain("delete", err))
	}
	proved := c.proved(values)
	if err = c.explain("delete", tx.Commit(ctx)); err == nil || errors.Is(err, purge.ErrLost) {
		gone = proved
	}
	if c.stuck = 0; err == nil && gone.Rows == 0 { // kept, or gone already: there is no sense in another try
		c.stuck = max(1, met.Stay)
	}
	return gone, err
}

// met is what came of the rows that were met.
type met struct {
	Gone, Stay   int64
	State, Cause string // of the last that stays
}

// deleteMet deletes the rows that are met. Where all of them stay, that is the error.
func (c *conn) deleteMet(ctx context.Context, tx pgx.Tx, w window, most int64, limit time.Duration) (m met, err error) {
	row, resists := "", ""
	if c.careful {
		leaves := strings.ReplaceAll(fmt.Sprintf("'{%v}'", c.facts.leaves), " ", ",")
		leaves = strings.NewReplacer("[", "", "]", "").Replace(leaves)
		row, resists = fmt.Sprintf(sqlScanRow, leaves), fmt.Sprintf(sqlScanResists, leaves)
	}
	var text string
	if _, err = tx.Exec(ctx, c.facts.on(sqlBeginScan), c.facts.signature); err == nil {
		_, err = tx.Exec(ctx, fmt.Sprintf(c.facts.on(sqlDeleteScan), literal(w.from), literal(w.to), most, limit.Milliseconds(), row, resists))
	}
	if err == nil {
		err = tx.QueryRow(ctx, sqlScanned).Scan(&text)
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &m)
	}
	if err == nil && m.Gone == 0 && m.Stay > 0 {
		c.stuck = m.Stay
		err = &pgconn.PgError{Code: m.State, Message: m.Cause, Where: "a row"}
	}
	return m, err
}

// runDeferred has triggers run that wait for the commit of tx, where there may be any.
func (c *conn) runDeferred(ctx context.Context, tx pgx.Tx) error {
	if !c.facts.acts {
		return nil
	}
	_, err := tx.Exec(ctx, sqlRunDeferred)
	return err
}

// literal returns t as a string of SQL has it.
func literal(t pgtype.Timestamp) string {
	if t.InfinityModifier != pgtype.Finite {
		return "-infinity"
	}
	return t.Time.UTC().Format("2006-01-02 15:04:05.999999")
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
	encoded pgx.ExtendedQueryBuilder
	sent    int   // batches that were sent whole, with the Sync that commits them
	failure error // of the last that was sent

	transaction, delete, prove *pgconn.StatementDescription
}

// sendNext sends the next of batches, if there is one and the limits hold still.
func (p *pipeline) sendNext(batches []purge.Batch) {
	if p.sent < len(batches) && p.mayGoOn() {
		p.send(batches[p.sent])
	}
}

// mayGoOn tells whether another batch may be sent: the limits hold still.
func (p *pipeline) mayGoOn() bool {
	return p.failure == nil && (p.sent == 0 || p.conn.limits.valid(time.Now()))
}

func (p *pipeline) send(b purge.Batch) {
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
	if p.failure == nil {
		p.failure = p.Sync()
	}
	if p.failure == nil {
		p.sent++
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

// begun reads the answer to the first statement of a batch, which the server sends ahead
// of all others.
func (p *pipeline) begun() (transaction uint64, failure error) {
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

// committed reads the answers to the other statements of a batch and to the Sync behind
// them; the failure is that of the first. Where the connection is lost after the last
// statement, what that said is returned beside the error.
func (p *pipeline) committed(failure error) (gone purge.Deleted, _ error) {
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
			if failure = cmp.Or(failure, err, errNoAnswer); !errors.As(err, &refused) {
				return gone, failure
			}
		}
	}
}

// proofs is how many numbers sqlProve returns.
const proofs = 3

// proved reads what sqlProve returned.
func (c *conn) proved(values [][]byte) purge.Deleted {
	var numbers [proofs]int64
	for i, value := range values {
		numbers[i], _ = strconv.ParseInt(string(value), 10, 64) // integers alone
	}
	gone := purge.Deleted{Rows: numbers[0], Took: time.Duration(numbers[1]) * time.Microsecond, Transaction: uint64(numbers[2])}
	switch {
	case gone.Transaction == 0:
	case c.facts.acts: // a block with an exception takes numbers of its own, wherever it is
		gone.Writes = -1
	default:
		gone.Writes = 1
	}
	return gone
}
