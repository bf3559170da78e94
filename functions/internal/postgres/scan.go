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

// meeting is what is known of rows that were met.
type meeting struct {
	careful bool  // one resists
	stuck   int64 // how many stay, where no other one was met
}

// cutScanned is Cut where neither expirations nor places tell rows apart: a batch is
// the rows that are met first, and there is another one as long as one is met.
func (c *conn) cutScanned(ctx context.Context, w window) ([]purge.Batch, purge.Window, error) {
	switch {
	case c.stuck > 0 && !w.scanned: // what is left is on its way back
		return nil, nil, nil
	case c.stuck > 0:
		return []purge.Batch{{Window: w, Rows: c.stuck}}, nil, nil
	}
	var met pgtype.Timestamp
	err := c.row(ctx, c.scan(), &met, c.facts.on(sqlAny), w.args()...)
	scan := w
	scan.scanned = true
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return []purge.Batch{{Window: scan}}, nil, nil
	case err != nil:
		return nil, nil, c.explain("find the next batch", err)
	}
	return []purge.Batch{{Window: scan}}, w, nil
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
		err = tx.QueryRow(ctx, prove, pgx.QueryResultFormats{pgx.TextFormatCode}, c.facts.leaves, most).Scan(&values[0], &values[1], &values[2], &values[3])
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

// literal returns t as a string of SQL has it.
func literal(t pgtype.Timestamp) string {
	if t.InfinityModifier != pgtype.Finite {
		return "-infinity"
	}
	return t.Time.UTC().Format("2006-01-02 15:04:05.999999")
}
