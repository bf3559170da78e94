package sqlserver

import (
	"context"
	"database/sql"
	"errors"

	"edfi-token-purge/functions/internal/purge"
)

// Delete implements [purge.Conn].
func (c *conn) Delete(ctx context.Context, b purge.Batch) (purge.Deleted, error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return purge.Deleted{}, purge.Uncommitted(c.explain("delete", err))
	}
	defer cancel()
	// The server can't tell by itself that the time is over, and one that is told
	// may have deleted already. Nothing is committed here without its count.
	tx, err := c.session.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return purge.Deleted{}, purge.Uncommitted(c.explain("delete", late(ctx, err)))
	}
	defer tx.Rollback() //nolint:errcheck // where it was not committed, the server does the same
	deleted, err := c.delete(ctx, tx, b.Window.(window))
	if err != nil {
		return purge.Deleted{}, purge.Uncommitted(c.explain("delete", late(ctx, err)))
	}
	if err = c.explain("delete", tx.Commit()); errors.Is(err, purge.ErrLost) {
		return purge.Deleted{Rows: deleted}, err // it may have come through
	} else if err != nil {
		return purge.Deleted{}, err
	}
	c.deleteVerified = c.deleteVerified || deleted > 0
	return purge.Deleted{Rows: deleted}, nil
}

// delete deletes the rows of w, and returns how many are gone once tx is committed.
func (c *conn) delete(ctx context.Context, tx *sql.Tx, w window) (deleted int64, err error) {
	statement := sqlDelete
	if !c.deleteVerified {
		statement = sqlDeleteVerifying
	}
	// An output parameter and not a result: a trigger may have results of its own.
	_, err = tx.ExecContext(ctx, c.on(w, statement), w.args(sql.Named("most", w.most), sql.Named("deleted", sql.Out{Dest: &deleted}))...)
	return deleted, err
}
