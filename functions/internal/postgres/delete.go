package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
)

// Delete implements [purge.Conn].
func (c *conn) Delete(ctx context.Context, b purge.Batch) (gone purge.Deleted, err error) {
	none := func() (none purge.Batch, more bool) { return none, false }
	c.DeleteAll(ctx, b, none, func(d purge.Deleted, e error) { gone, err = d, e })
	return gone, err
}

// DeleteAll implements [purge.Pipeliner].
func (c *conn) DeleteAll(ctx context.Context, first purge.Batch, next func() (purge.Batch, bool), done func(purge.Deleted, error)) {
	for b, more := first, true; more; {
		if b.Window.(window).scanned {
			done(c.deleteScanned(ctx, b))
			b, more = next()
		} else {
			b, more = c.deleteAlike(ctx, b, next, done)
		}
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
	if rows = b.Rows; rows == 0 { // nobody has counted them
		if rows, err = c.countIn(ctx, w); err != nil {
			return 0, 0, c.explain("try to delete", err)
		}
	}
	plan, sql, prove := c.deleting(w.physical)
	if err := c.prepare(ctx, plan, sql, 2); err != nil { // with the triggers that wait
		return rows, gone, c.explain("try to delete", err)
	}
	undone, everything, left := errors.New("undone"), c.Expired(time.Time{}, c.facts.clock.Time), int64(0)
	err = pgx.BeginFunc(ctx, c.pg, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sql, w.args(c.facts.signature)...); err != nil {
			return err
		}
		if err := c.runDeferred(ctx, tx); err != nil {
			return err
		}
		var micros, number, writes int64
		if err := tx.QueryRow(ctx, prove, c.facts.leaves, int64(math.MaxInt64)).Scan(&gone, &micros, &number, &writes); err != nil {
			return err
		}
		if gone > rows {
			err := tx.QueryRow(ctx, c.facts.on(sqlCount), everything.(window).args(c.facts.signature)...).Scan(&left)
			return cmp.Or(err, undone)
		}
		return undone
	})
	switch {
	case !errors.Is(err, undone):
		return rows, gone, c.explain("try to delete", err)
	case gone > rows:
		return rows, gone, c.takesLive(ctx, everything, left, gone)
	}
	return rows, gone, nil
}

// takesLive returns an error where more rows went than of those that have expired, of
// which so many were left.
func (c *conn) takesLive(ctx context.Context, expired purge.Window, left, gone int64) error {
	all, err := c.Count(ctx, expired)
	if live := gone - (all - left); err == nil && live > 0 {
		return fmt.Errorf("try to delete: %w: rows that have expired take %s with them that have not", purge.ErrRefused, purge.Grouped(live))
	}
	return err
}

// runDeferred has triggers run that wait for the commit of tx, where there may be any.
func (c *conn) runDeferred(ctx context.Context, tx pgx.Tx) error {
	if !c.facts.acts {
		return nil
	}
	_, err := tx.Exec(ctx, sqlRunDeferred)
	return err
}

// proofs is how many numbers sqlProve returns.
const proofs = 4

// proved reads what sqlProve returned.
func (c *conn) proved(values [][]byte) purge.Deleted {
	var numbers [proofs]int64
	for i, value := range values {
		numbers[i], _ = strconv.ParseInt(string(value), 10, 64) // integers alone
	}
	gone := purge.Deleted{Rows: numbers[0], Took: time.Duration(numbers[1]) * time.Microsecond, Transaction: uint64(numbers[2]), Count: numbers[3]}
	switch {
	case gone.Transaction == 0:
	case c.facts.acts: // a block with an exception takes numbers of its own, wherever it is
		gone.Writes = -1
	default:
		gone.Writes = 1
	}
	return gone
}
