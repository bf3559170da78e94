package sqlserver

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// window is a [purge.Window]: the rows with from <= Expiration < to. Where byKey,
// only those of them with lower <= Id < upper, or up to the last Id of all, or where
// single, with lower alone.
// Where no index leads to expirations the whole table is cut into slices by key, of
// which the window is one and so many follow.
type window struct {
	from, to     time.Time
	byKey        bool
	lower, upper key
	single       bool
	most         int // rows that one statement may delete of it
	slice        int
	slices       int      // of the whole table; 0 is none
	keys         keyRange // of all slices
	follow       int
}

const (
	// sliceRows is about how many rows a slice has, so that it is read in the time of
	// a batch.
	sliceRows = 50_000
	// mostSlices is where slices get no smaller.
	mostSlices = 1 << 16
	// fewSlices is how many there are of a table whose size isn't known.
	fewSlices = 16
)

// args are the parameters of a statement on w.
func (c *conn) args(w window, more ...any) []any {
	args := append(slices.Clone(more), sql.Named("from", c.facts.instant(w.from)), sql.Named("to", c.facts.instant(w.to)))
	if w.byKey {
		args = append(args, sql.Named("lower", w.lower.value()), sql.Named("upper", w.upper.value()), sql.Named("last", w.single || w.upper == c.facts.lastKey()))
	}
	return args
}

// Expired implements [purge.Conn].
func (c *conn) Expired(after, cutoff time.Time) purge.Window {
	w := window{from: c.facts.first(), to: c.facts.next(c.facts.floor(cutoff))}
	if !after.IsZero() {
		w.from = c.facts.next(c.facts.floor(after))
	}
	return w
}

// Oldest implements [purge.Conn]. It has no use for the trail: SQL Server clears the
// index entries of deleted rows away by itself, and soon.
func (c *conn) Oldest(ctx context.Context, w purge.Window, _ purge.Trail) (time.Time, purge.Window, error) {
	for _, look := range c.looks(w.(window)) {
		var oldest, free sql.NullTime // of all, and of those that nobody has locked
		if err := c.row(ctx, []any{&oldest, &free}, c.on(look, c.sqlOldest()), c.args(look)...); err != nil {
			return time.Time{}, nil, c.explain("look for expired rows", err)
		}
		if !free.Valid {
			continue
		}
		found := w.(window)
		if !found.byKey {
			found.from = c.facts.startOf(free.Time)
		}
		return oldest.Time, found, nil
	}
	return time.Time{}, nil, nil
}

// sqlOldest returns the statement that looks for the oldest row. What a policy hides it
// must not miss: Babelfish has none.
func (c *conn) sqlOldest() string {
	statement := sqlOldestOfAll
	if c.facts.indexed {
		statement = sqlOldest
	}
	if c.facts.exact {
		return sqlGuardPolicy + statement
	}
	return statement
}

// looks splits w where its keys are those of its first expiration, and others
// follow.
func (c *conn) looks(w window) []window {
	first := c.onlyFirst(w)
	if w.follow > 0 { // all of them are left
		return []window{{from: w.from, to: w.to}}
	}
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
	err := c.row(ctx, []any{&count}, c.facts.on(sqlCount), c.args(w.(window))...)
	return count, c.explain("count expired rows", err)
}

// end is where a batch ends: at the first row of the next one.
type end struct{ first, before time.Time }

// Cut implements [purge.Conn]: a batch ends where the row after it begins. How many rows
// it has is not known: others' locked rows are passed over.
func (c *conn) Cut(ctx context.Context, w purge.Window, size, batches int) (cut []purge.Batch, rest purge.Window, err error) {
	part := w.(window)
	part.most = min(size, MostBatch)
	if part.byKey || !c.facts.indexed {
		return c.cutByKey(ctx, part)
	}
	ends, err := c.ends(ctx, part, batches)
	if err != nil {
		return nil, nil, c.explain("find the next batch", err)
	}
	for _, e := range ends {
		start := c.facts.startOf(e.first)
		if !start.After(part.from) {
			break // more rows than a batch share one expiration
		}
		cut = append(cut, purge.Batch{Window: window{from: part.from, to: start, most: part.most}})
		if part.from = start; !start.After(e.before) {
			break // the next batch has rows of this one's place as well
		}
	}
	switch {
	case len(cut) == 0 && len(ends) > 0: // their key tells them apart
		return c.cutByKey(ctx, part)
	case len(cut) == len(ends) && len(ends) < batches && (len(ends) == 0 || part.from.After(ends[len(ends)-1].before)): // a batch at most is left
		return append(cut, purge.Batch{Window: part}), nil, nil
	default:
		return cut, window{from: part.from, to: part.to}, nil
	}
}

// ends returns where the next batches end, as many as there are.
func (c *conn) ends(ctx context.Context, part window, batches int) (all []end, err error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	read, err := c.session.QueryContext(ctx, c.facts.on(sqlEnds), c.args(part, sql.Named("n", part.most), sql.Named("total", part.most*batches+1))...)
	if err != nil {
		return nil, late(ctx, err)
	}
	defer read.Close()
	for read.Next() {
		var e end
		if err := read.Scan(&e.first, &e.before); err != nil {
			return nil, late(ctx, err)
		}
		all = append(all, e)
	}
	return all, late(ctx, read.Err())
}

// cutByKey is Cut by key instead of expiration. Where an index finds rows by their
// expiration it stays with the first one, else it goes over all slices.
func (c *conn) cutByKey(ctx context.Context, part window) ([]purge.Batch, purge.Window, error) {
	switch {
	case !c.facts.keyed(): // as many as a batch may have; the next look finds the others
		return []purge.Batch{{Window: part}}, nil, nil
	case !part.byKey && c.facts.indexed:
		part.byKey, part.lower, part.upper = true, c.facts.firstKey(), c.facts.lastKey()
	case !part.byKey:
		var err error
		if part, err = c.firstSlice(ctx, part); err != nil {
			return nil, nil, c.explain("find the next batch", err)
		}
	}
	cut, rest := part, part
	if c.facts.indexed {
		cut = c.onlyFirst(part)
	}
	cut.follow = 0
	err := c.row(ctx, []any{&cut.upper}, c.on(cut, sqlEndByKey), c.args(cut, sql.Named("n", cut.most))...)
	switch {
	case errors.Is(err, sql.ErrNoRows) && part.follow > 0: // a batch at most, of this slice
		return []purge.Batch{{Window: cut}}, c.nextSlice(part), nil
	case errors.Is(err, sql.ErrNoRows): // a batch at most
		if cut.to.Before(part.to) {
			return []purge.Batch{{Window: cut}}, window{from: cut.to, to: part.to}, nil
		}
		return []purge.Batch{{Window: cut}}, nil, nil
	case err != nil:
		return nil, nil, c.explain("find the next batch", err)
	case cut.upper == cut.lower: // more rows than a batch share one key; the next look finds the others
		cut.single = true
		return []purge.Batch{{Window: cut}}, nil, nil
	default:
		rest.lower = cut.upper
		return []purge.Batch{{Window: cut}}, rest, nil
	}
}

// firstSlice returns a slice of the table for w, any of them: a run that can't read all
// of it must not begin where the last one did.
func (c *conn) firstSlice(ctx context.Context, w window) (window, error) {
	if c.facts.numbered() {
		err := c.row(ctx, []any{&w.keys.first, &w.keys.last}, c.facts.on(sqlKeyRange))
		if err != nil {
			return w, err
		}
	}
	w.slices = fewSlices
	if c.facts.rows > 0 {
		w.slices = int(min(c.facts.rows/sliceRows+1, mostSlices))
	}
	w.byKey, w.follow = true, w.slices
	w.slice = rand.IntN(w.slices)
	return c.slice(w, w.slice), nil
}

// nextSlice returns the slice after w, and after the last one the first.
func (c *conn) nextSlice(w window) window { return c.slice(w, (w.slice+1)%w.slices) }

// slice returns a slice of the table of which w is another one. The first and the last
// have what may come meanwhile, too.
func (c *conn) slice(w window, slice int) window {
	w.slice, w.follow = slice, w.follow-1
	w.lower, w.upper = c.facts.firstKey(), c.facts.lastKey()
	if slice > 0 {
		w.lower = w.keys.at(slice, w.slices)
	}
	if slice+1 < w.slices {
		w.upper = w.keys.at(slice+1, w.slices)
	}
	return w
}

// on returns sql for the rows of w.
func (c *conn) on(w window, sql string) string {
	switch {
	case !w.byKey:
	case c.facts.indexed && c.facts.exact && w.to.Equal(c.facts.next(w.from)):
		sql = strings.ReplaceAll(sql, sqlWindow, sqlByKeyOfOne)
	default:
		sql = strings.ReplaceAll(sql, sqlWindow, sqlByKey)
	}
	return c.facts.on(sql)
}

// row reads the one row that sql returns into dest.
func (c *conn) row(ctx context.Context, dest []any, sql string, args ...any) error {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	return late(ctx, c.session.QueryRowContext(ctx, sql, args...).Scan(dest...))
}
