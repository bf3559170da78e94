package sqlserver

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	mssql "github.com/microsoft/go-mssqldb"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// fewRows is how many rows a rehearsal begins with.
const fewRows = 10

// errCommits is for a trigger that ends the transaction it runs in. Rows go without
// a count, and before anybody can undo them.
var errCommits = errors.New("a trigger on DELETE commits the transaction that it runs in, so that deletes can't be counted: take COMMIT out of it, or turn it off; a check lists the triggers that the login may see")

// Delete implements [purge.Conn].
func (c *conn) Delete(ctx context.Context, b purge.Batch) (purge.Deleted, error) {
	if c.commits {
		return purge.Deleted{}, errCommits
	}
	if longest := c.longest(); longest > 0 && !b.Patient {
		brief, cancel := context.WithTimeout(ctx, longest)
		defer cancel()
		ctx = brief
	}
	w := b.Window.(window)
	w.most = cmp.Or(min(w.most, int(b.Most)), w.most)
	gone, err := c.deleteOnce(ctx, w)
	if isNumber(err, rowsLeft) {
		c.deleteVerified = false
		gone, err = c.deleteOnce(ctx, w)
	}
	var refused mssql.Error
	if errors.As(err, &refused) && !errors.Is(err, purge.ErrLost) { // the server's own words
		err = purge.Uncommitted(c.explainDelete(refused))
	}
	return gone, err
}

// deleteOnce deletes the rows of w in a transaction. What the server itself says comes
// back as it is.
func (c *conn) deleteOnce(ctx context.Context, w window) (purge.Deleted, error) {
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
	held, gone, err := c.delete(ctx, tx, w)
	switch {
	case isNumber(err, endedInTrigger):
		return c.ended(ctx, w, held, err)
	case err != nil && ctx.Err() == nil && isRefusal(err):
		return purge.Deleted{}, err
	case err != nil:
		if err = c.explain("delete", late(ctx, err)); c.facts.triggered && errors.Is(err, purge.ErrLost) { // a trigger may have committed it
			return purge.Deleted{Rows: -1}, err
		}
		return purge.Deleted{}, purge.Uncommitted(err)
	}
	if err = c.explain("delete", tx.Commit()); errors.Is(err, purge.ErrLost) {
		return gone, err // it may have come through
	} else if err != nil {
		return purge.Deleted{}, err
	}
	c.deleteVerified = c.deleteVerified || gone.Rows > 0
	return gone, nil
}

// delete deletes the rows of w, and returns how many it held before, where that was
// looked at, and how many are gone once tx is committed.
func (c *conn) delete(ctx context.Context, tx *sql.Tx, w window) (held int64, gone purge.Deleted, err error) {
	var microseconds int64
	statement, args := c.deleting(w, sqlDelete, &gone.Rows, &microseconds)
	if !c.deleteVerified || c.facts.triggered {
		if err := tx.QueryRowContext(ctx, c.on(w, sqlHeld), c.args(w)...).Scan(&held); err != nil {
			return 0, purge.Deleted{}, err
		}
		statement, args = c.verifying(w, sqlDeleteVerifying, held, &gone.Rows, &microseconds)
	}
	// An output parameter and not a result: a trigger may have results of its own.
	if _, err := tx.ExecContext(ctx, statement, args...); err != nil {
		return held, purge.Deleted{}, err
	}
	gone.Took = time.Duration(microseconds) * time.Microsecond
	return held, gone, nil
}

// deleting returns a statement that deletes rows of w, and its parameters.
func (c *conn) deleting(w window, statement string, gone, microseconds *int64) (string, []any) {
	if !c.facts.exact {
		statement = strings.Replace(statement, sqlSameType, babelfishSameType, 1)
	}
	return c.on(w, statement), c.args(w,
		sql.Named("most", w.most), sql.Named("oid", c.facts.oid), sql.Named("triggered", c.facts.triggered),
		sql.Named("deleted", sql.Out{Dest: gone}), sql.Named("took", sql.Out{Dest: microseconds}))
}

// verifying is deleting with a statement that counts what goes, of so many rows.
func (c *conn) verifying(w window, statement string, held int64, gone, microseconds *int64) (string, []any) {
	statement, args := c.deleting(w, statement, gone, microseconds)
	return statement, append(args, sql.Named("held", held))
}

// Rehearse implements [purge.Rehearser]. It begins with a few rows, and goes on with as
// many as hold their locks no longer than a batch of a purge may.
func (c *conn) Rehearse(ctx context.Context, b purge.Batch) (rows, gone int64, err error) {
	w := b.Window.(window)
	if few := w; c.server.Longest > 0 && w.most > fewRows {
		few.most = fewRows
		rows, deleted, err := c.rehearse(ctx, few)
		w.most = min(w.most, int(fewRows*c.server.Longest/2/max(deleted.Took, time.Microsecond)))
		if err != nil || deleted.Rows < rows || rows < fewRows || w.most <= fewRows {
			return rows, deleted.Rows, err
		}
	}
	rows, deleted, err := c.rehearse(ctx, w)
	return rows, deleted.Rows, err
}

// rehearse tries a delete of some rows of w, and undoes it.
func (c *conn) rehearse(ctx context.Context, w window) (rows int64, gone purge.Deleted, err error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return 0, purge.Deleted{}, c.explain("try to delete", err)
	}
	defer cancel()
	var held int64
	if err := c.session.QueryRowContext(ctx, c.on(w, sqlHeld), c.args(w)...).Scan(&held); err != nil {
		return 0, purge.Deleted{}, c.explain("try to delete", late(ctx, err))
	}
	var microseconds int64
	statement, args := c.verifying(w, sqlRehearse, held, &gone.Rows, &microseconds)
	_, err = c.session.ExecContext(ctx, statement, append(args, sql.Named("rows", sql.Out{Dest: &rows}))...)
	if err == nil {
		gone.Took = time.Duration(microseconds) * time.Microsecond
		return rows, gone, nil
	}
	c.session.ExecContext(context.WithoutCancel(ctx), sqlUndo) //nolint:errcheck // the server has done it, or the session has ended
	refused, isRefused := errors.AsType[mssql.Error](err)
	switch {
	case isNumber(err, mayCommit):
		return 0, purge.Deleted{}, c.notRehearsed(refused.Message)
	case isNumber(err, endsTransaction):
		return 0, purge.Deleted{}, fmt.Errorf("%w: %w", purge.ErrRefused, errCommits)
	case isRefused && ctx.Err() == nil:
		return 0, purge.Deleted{}, c.explainDelete(refused)
	default:
		return 0, purge.Deleted{}, c.explain("try to delete", late(ctx, err))
	}
}

// notRehearsed is the error for a delete that was not tried because of a trigger.
func (c *conn) notRehearsed(trigger string) error {
	return purge.Also(fmt.Errorf("no delete was tried, as trigger %s might commit it: its text has COMMIT or EXECUTE in it, or the login may not see it; then GRANT VIEW DEFINITION ON %s TO edfi_token_purge; shows it to a check", redact.Login(trigger, c.server.User, c.server.Password), c.table), errors.ErrUnsupported)
}

// ended finds out what became of a batch whose transaction a trigger has ended: by a
// rollback, which refuses the rows, or by a commit.
func (c *conn) ended(ctx context.Context, w window, held int64, err error) (purge.Deleted, error) {
	var left int64
	if failure := c.session.QueryRowContext(ctx, c.on(w, sqlHeld), c.args(w)...).Scan(&left); failure != nil {
		// Whatever it failed at, the rows may have gone.
		return purge.Deleted{Rows: -1}, purge.Also(c.explain("delete", late(ctx, failure)), purge.ErrLost)
	}
	switch {
	case left < held:
		c.commits = true
		return purge.Deleted{Rows: held - left}, nil
	case held == 0: // not looked at
		c.deleteVerified = false
		c.commits = left == 0
	}
	if c.commits {
		return purge.Deleted{}, errCommits
	}
	return purge.Deleted{}, err
}

// explainDelete says what it means that the server refuses a batch.
func (c *conn) explainDelete(refused mssql.Error) error {
	switch n := number(refused); {
	case meanings[n] != unknown:
		return c.explain("delete", refused)
	case n == foreignKey:
		return fmt.Errorf("%w: %w", purge.ErrRefused, c.explain("another table refers to it", refused))
	case n == blockPredicate:
		return fmt.Errorf("%w: %w", purge.ErrRefused, c.explain("a row-level security policy blocks it", refused))
	case n >= firstUserError && n != changed, n == endedInTrigger, refused.ProcName != "":
		return fmt.Errorf("%w: %w", purge.ErrRefused, c.explain("a trigger says", refused))
	default:
		return c.explain("delete", refused)
	}
}

// isRefusal tells whether err is what a server says that goes on serving.
func isRefusal(err error) bool {
	var refused mssql.Error
	return errors.As(err, &refused) && refused.Class < fatalClass
}

// isNumber tells whether the server gave an error this number, among others perhaps.
func isNumber(err error, n int32) bool {
	var refused mssql.Error
	if !errors.As(err, &refused) {
		return false
	}
	for _, one := range refused.All {
		if babelfishNumber(one) == n {
			return true
		}
	}
	return babelfishNumber(refused) == n
}
