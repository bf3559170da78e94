package sqlserver

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	mssql "github.com/microsoft/go-mssqldb"

	"edfi-token-purge/functions/internal/purge"
)

// window is a [purge.Window]: the rows with from <= Expiration < to. Where byKey,
// only those of them with lower <= Id < upper, or up to the last Id of all.
type window struct {
	from, to     time.Time
	byKey        bool
	lower, upper mssql.UniqueIdentifier
	most         int // rows that one statement may delete of it
}

var (
	firstKey mssql.UniqueIdentifier
	lastKey  = mssql.UniqueIdentifier{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	}
)

// args are the parameters of a statement on w.
func (w window) args(more ...any) []any {
	args := append(slices.Clone(more), sql.Named("from", mssql.DateTime1(w.from)), sql.Named("to", mssql.DateTime1(w.to)))
	if w.byKey {
		args = append(args, sql.Named("lower", w.lower), sql.Named("upper", w.upper), sql.Named("last", w.upper == lastKey))
	}
	return args
}

// datetime returns the last instant up to t that the type can hold: 300 of them
// make a second, and their milliseconds end in 0, 3 and 7.
func datetime(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Millisecond)
	switch digit := time.Duration(t.Nanosecond() / 1e6 % 10); {
	case digit >= 7:
		return t.Add((7 - digit) * time.Millisecond)
	case digit >= 3:
		return t.Add((3 - digit) * time.Millisecond)
	default:
		return t.Add(-digit * time.Millisecond)
	}
}

// next is the instant after t.
func next(t time.Time) time.Time { return datetime(t.Add(4 * time.Millisecond)) }

// Expired implements [purge.Conn].
func (c *conn) Expired(after, cutoff time.Time) purge.Window {
	w := window{from: time.Date(1753, time.January, 1, 0, 0, 0, 0, time.UTC), to: next(datetime(cutoff))}
	if !after.IsZero() {
		w.from = next(datetime(after))
	}
	return w
}

// Oldest implements [purge.Conn]. It has no use for the trail: SQL Server clears the
// index entries of deleted rows away by itself, and soon.
func (c *conn) Oldest(ctx context.Context, w purge.Window, _ purge.Trail) (time.Time, purge.Window, error) {
	for _, look := range c.looks(w.(window)) {
		var oldest sql.NullTime
		if err := c.row(ctx, &oldest, c.on(look, sqlOldest), look.args()...); err != nil {
			return time.Time{}, nil, c.explain("look for expired rows", err)
		}
		if !oldest.Valid {
			continue
		}
		found := w.(window)
		if !found.byKey {
			found.from = c.facts.startOf(oldest.Time)
		}
		return oldest.Time, found, nil
	}
	return time.Time{}, nil, nil
}

// looks splits w where its keys are those of its first expiration, and others
// follow.
func (c *conn) looks(w window) []window {
	first := c.onlyFirst(w)
	if !w.byKey || !c.facts.indexed || first == w {
		return []window{w}
	}
	return []window{first, {from: first.to, to: w.to}}
}

// onlyFirst returns w without the expirations after its first one.
func (c *conn) onlyFirst(w window) window {
	if end := c.facts.endOf(w.from); end.Before(w.to) {
		w.to = end
	}
	return w
}

// Count implements [purge.Conn].
func (c *conn) Count(ctx context.Context, w purge.Window) (int64, error) {
	var count int64
	err := c.row(ctx, &count, sqlCount, w.(window).args()...)
	return count, c.explain("count expired rows", err)
}

// Cut implements [purge.Conn]: a batch ends where the row after it begins. The
// server finds each end by itself, so one call cuts one batch. How many rows it has
// is not known: others' locked rows are passed over.
func (c *conn) Cut(ctx context.Context, w purge.Window, size, _ int) ([]purge.Batch, purge.Window, error) {
	part := w.(window)
	part.most = min(size, MostBatch)
	if part.byKey || !c.facts.indexed {
		return c.cutByKey(ctx, part)
	}
	var end time.Time
	err := c.row(ctx, &end, sqlEnd, part.args(sql.Named("n", part.most))...)
	switch start := c.facts.startOf(end); {
	case errors.Is(err, sql.ErrNoRows): // a batch at most
		return []purge.Batch{{Window: part}}, nil, nil
	case err != nil:
		return nil, nil, c.explain("find the next batch", err)
	case start.After(part.from):
		cut := window{from: part.from, to: start, most: part.most}
		return []purge.Batch{{Window: cut}}, window{from: start, to: part.to}, nil
	default: // more rows than a batch share one expiration: their key tells them apart
		return c.cutByKey(ctx, part)
	}
}

// cutByKey is Cut by key instead of expiration. Where an index finds rows by their
// expiration it stays with the first one, else it goes over all.
func (c *conn) cutByKey(ctx context.Context, part window) ([]purge.Batch, purge.Window, error) {
	if !part.byKey {
		part.byKey, part.lower, part.upper = true, firstKey, lastKey
	}
	cut, rest := part, part
	if c.facts.indexed {
		cut = c.onlyFirst(part)
	}
	err := c.row(ctx, &cut.upper, c.on(cut, sqlEndByKey), cut.args(sql.Named("n", cut.most))...)
	switch {
	case errors.Is(err, sql.ErrNoRows): // a batch at most
		if cut.to.Before(part.to) {
			return []purge.Batch{{Window: cut}}, window{from: cut.to, to: part.to}, nil
		}
		return []purge.Batch{{Window: cut}}, nil, nil
	case err != nil:
		return nil, nil, c.explain("find the next batch", err)
	default:
		rest.lower = cut.upper
		return []purge.Batch{{Window: cut}}, rest, nil
	}
}

// on returns sql for the rows of w.
func (c *conn) on(w window, sql string) string {
	switch {
	case !w.byKey:
		return sql
	case c.facts.indexed && c.facts.exact && w.to.Equal(next(w.from)):
		return strings.ReplaceAll(sql, sqlWindow, sqlByKeyOfOne)
	default:
		return strings.ReplaceAll(sql, sqlWindow, sqlByKey)
	}
}

// row reads the one value that sql returns into dest.
func (c *conn) row(ctx context.Context, dest any, sql string, args ...any) error {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	return late(ctx, c.session.QueryRowContext(ctx, sql, args...).Scan(dest))
}
