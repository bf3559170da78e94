package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"edfi-token-purge/functions/internal/purge"
)

// scan is how rows are met one after the other.
func (c *conn) scan() plan {
	if c.facts.indexed {
		return byIndex
	}
	return inSequence
}

// deleteScanned deletes a batch of rows as they are met, where neither expirations nor
// places tell rows apart. Where one of them resists, it is tried once more, with care for
// the others.
func (c *conn) deleteScanned(ctx context.Context, b purge.Batch) (purge.Deleted, error) {
	gone, err := c.scanOnce(ctx, b)
	if !c.careful && (errors.Is(err, purge.ErrLocked) || errors.Is(err, purge.ErrRefused) || errors.Is(err, purge.ErrTimeout)) {
		c.careful = true
		gone, err = c.scanOnce(ctx, b)
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
	if c.careful {         // what waits for the end would refuse all rows for one
		err = c.runDeferred(ctx, tx)
	}
	var met met
	if err == nil {
		met, err = c.deleteMet(ctx, tx, b.Window.(window), most, limit)
	}
	values := make([][]byte, proofs)
	if err == nil {
		err = c.runDeferred(ctx, tx)
	}
	if err == nil {
		err = tx.QueryRow(ctx, prove, pgx.QueryResultFormats{pgx.TextFormatCode}, c.facts.leaves, most).Scan(&values[0], &values[1], &values[2], &values[3])
	}
	if err != nil {
		return purge.Deleted{Stay: met.Stay}, purge.Uncommitted(c.explain("delete", err))
	}
	proved := c.proved(values)
	if err = c.explain("delete", tx.Commit(ctx)); err == nil || errors.Is(err, purge.ErrLost) {
		gone = proved
	}
	gone.More = gone.Rows > 0 && (!met.All || met.Stay > 0)
	return gone, err
}

// met is what came of the rows that were met.
type met struct {
	Gone, Stay   int64
	All          bool   // there is no other
	State, Cause string // of one that stays, rather of a locked one
}

// deleteMet deletes the rows that are met. Where none goes and one stays, that is the
// error.
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
	switch {
	case err != nil || m.Gone > 0:
		return m, err
	case !m.All:
		return met{}, fmt.Errorf("%w: it met none that goes", purge.ErrTimeout)
	case m.Stay > 0:
		err = &pgconn.PgError{Code: m.State, Message: m.Cause, Where: "a row"}
	}
	return m, err
}

// literal returns t as a string of SQL has it.
func literal(t pgtype.Timestamp) string {
	if t.InfinityModifier != pgtype.Finite {
		return "-infinity"
	}
	return t.Time.UTC().Format("2006-01-02 15:04:05.999999")
}
