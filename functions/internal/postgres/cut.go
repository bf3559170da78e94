package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"edfi-token-purge/functions/internal/purge"
)

const (
	// mostlyDeadRows is from how many deleted rows on, for each page of the table, a
	// look that reads the table itself is quicker than one over all their index
	// entries; deadRows is how many there must be for it to matter.
	mostlyDeadRows = 40
	deadRows       = 50_000
	// chunkPages is how many pages one statement on a physical range covers at
	// most, 8 MB, so that it stays short where few rows have expired.
	chunkPages = 1024
	// listPages is the same for PostgreSQL 13, where each place is listed.
	listPages = 16
	// samplePages is about how many pages are looked at to find where the rows are, and
	// sampledParts into how many parts the table is divided for that.
	samplePages  = 1000
	sampledParts = 64
	// densePages is about how many pages are looked at to learn whether a window has most
	// rows, and denseRows how many of its rows a page must have then.
	densePages = 100
	denseRows  = 16
	// leastPages is how many pages a batch must have room for to go page by page, else it
	// would be much smaller than it may be.
	leastPages = 4
	// wholePages is the largest table, 512 MB, whose rows go page by page: a run that
	// stops must have the time to look for the oldest row on the pages that are left.
	wholePages = 1 << 16
	// lastPage is the greatest number that a page can have.
	lastPage = 1<<32 - 2
)

// window is a [purge.Window]: the rows with from <= expiration < to. Where
// physical, only those of them in lower <= ctid < upper, and after them those on the
// pages before wrap; where whole, they are most rows of these pages. Where scanned, those
// that are met first in reading the table. What was found out in cutting it stays with
// what is left of it.
type window struct {
	from, to     pgtype.Timestamp
	physical     bool
	lower, upper pgtype.TID
	wrap         uint32
	whole        bool
	scanned      bool
	sampled      bool // whether they are most rows of the table is known
	tooLarge     bool // reading the whole table for each batch would take too long
}

// args are the parameters of a statement on w.
func (w window) args(more ...any) []any {
	args := []any{w.from, w.to}
	if w.physical {
		args = append(args, w.lower, w.upper)
	}
	return append(args, more...)
}

// everywhere returns w without its bounds of place.
func (w window) everywhere() window {
	w.physical, w.whole = false, false
	return w
}

func timestamp(t time.Time) pgtype.Timestamp {
	return pgtype.Timestamp{Time: t.UTC(), Valid: true}
}

// next is the instant after t: expirations have microseconds.
func next(t pgtype.Timestamp) pgtype.Timestamp {
	return timestamp(t.Time.Add(time.Microsecond))
}

func before(a, b pgtype.Timestamp) bool {
	return a.InfinityModifier == pgtype.NegativeInfinity || a.Time.Before(b.Time)
}

// instant returns t as a time; what is older than Go's year 1 is that year.
func instant(t pgtype.Timestamp) time.Time {
	if t.InfinityModifier != pgtype.Finite {
		return time.Time{}
	}
	return t.Time.UTC()
}

func page(number uint32) pgtype.TID { return pgtype.TID{BlockNumber: number, Valid: true} }

// Expired implements [purge.Conn].
func (c *conn) Expired(after, cutoff time.Time) purge.Window {
	w := window{to: next(timestamp(cutoff.Truncate(time.Microsecond)))}
	if w.from = next(timestamp(after.Truncate(time.Microsecond))); after.IsZero() {
		w.from = pgtype.Timestamp{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	}
	return w
}

// Oldest implements [purge.Conn].
func (c *conn) Oldest(ctx context.Context, w purge.Window, trail purge.Trail) (time.Time, purge.Window, error) {
	return c.OldestWith(ctx, nil, w, trail)
}

// OldestWith implements [purge.Sharer].
func (c *conn) OldestWith(ctx context.Context, others []purge.Conn, w purge.Window, trail purge.Trail) (time.Time, purge.Window, error) {
	looks, err := c.looks(ctx, w.(window), trail)
	if err != nil {
		return time.Time{}, nil, c.explain("read the table's size", err)
	}
	first, err := c.oldestOf(ctx, looks, others)
	if err != nil {
		return time.Time{}, nil, c.explain("look for expired rows", err)
	}
	if !first.Valid {
		return time.Time{}, nil, nil
	}
	found := w.(window)
	if !found.physical {
		found.from = first
	}
	return instant(first), found, nil
}

// oldestOf returns the oldest expiration that looks find, which come in the order of
// their windows where they do not read the table itself.
func (c *conn) oldestOf(ctx context.Context, looks []look, others []purge.Conn) (first pgtype.Timestamp, err error) {
	if looks[0].mostlyDead {
		return c.oldestOfAll(ctx, looks, others)
	}
	for _, look := range looks {
		if first, err = c.oldest(ctx, look); err != nil || first.Valid { // what comes later is younger
			break
		}
	}
	return first, err
}

// oldestOfAll has each of the connections do a look after the other. What another one
// fails at is done here.
func (c *conn) oldestOfAll(ctx context.Context, looks []look, others []purge.Conn) (first pgtype.Timestamp, err error) {
	found := make([]pgtype.Timestamp, len(looks))
	done := make([]bool, len(looks))
	var next atomic.Int64
	begin := func(on *conn) (err error) {
		for i := next.Add(1) - 1; i < int64(len(looks)) && err == nil; i = next.Add(1) - 1 {
			found[i], err = on.oldest(ctx, looks[i])
			done[i] = err == nil
		}
		return err
	}
	var working sync.WaitGroup
	for _, other := range others {
		if other, ok := other.(*conn); ok {
			working.Go(func() { _ = begin(other) }) // done tells
		}
	}
	err = begin(c)
	working.Wait()
	for i := 0; i < len(looks) && err == nil; i++ {
		if !done[i] {
			found[i], err = c.oldest(ctx, looks[i])
		}
		if found[i].Valid && (!first.Valid || before(found[i], first)) {
			first = found[i]
		}
	}
	return first, err
}

// oldest returns the oldest expiration that one look finds.
func (c *conn) oldest(ctx context.Context, l look) (oldest pgtype.Timestamp, err error) {
	plan, sql, args := byIndex, sqlOldest, l.args(c.facts.signature)
	switch {
	case l.physical && c.facts.readsRanges():
		plan, sql = byPlace, sqlOldestPhysical
	case l.physical: // a list of all places would be too long
		plan, args = inSequence, l.everywhere().args(c.facts.signature)
	case l.mostlyDead:
		plan = inSequence
	}
	return oldest, c.row(ctx, plan, &oldest, c.facts.on(sql), args...)
}

// look is a part of a window that one statement looks at.
type look struct {
	window
	mostlyDead bool // much of the table is deleted, so that reading all of it is quicker
}

// looks splits w at the checkpoints, so that no look passes over too many deleted
// rows. Where they are most of the table, it is split by place; or not at all, if
// the role may not tell places apart.
func (c *conn) looks(ctx context.Context, w window, trail purge.Trail) (looks []look, err error) {
	switch {
	case w.whole:
		return byChunks(w), nil
	case w.physical || !c.facts.indexed:
		return []look{{window: w}}, nil
	}
	if dead := max(trail.Rows, c.facts.dead); dead >= deadRows && w.from.InfinityModifier == pgtype.NegativeInfinity { // of this run, or of earlier ones too
		if looks, err = c.looksAtDead(ctx, w, dead, byPlaces(trail)); looks != nil || err != nil {
			return looks, err
		}
	}
	for _, checkpoint := range trail.Checkpoints {
		at := checkpoint.(window)
		if !at.physical && before(w.from, at.from) && before(at.from, w.to) {
			looks = append(looks, look{window: window{from: w.from, to: at.from}})
			w.from = at.from
		}
	}
	return append(looks, look{window: w}), nil
}

// looksAtDead splits w by place where deleted rows are most of the table, or no checkpoint
// splits it: nil where neither is so.
func (c *conn) looksAtDead(ctx context.Context, w window, dead int64, byPlace bool) ([]look, error) {
	pages, err := c.pages(ctx)
	switch {
	case err != nil:
		return nil, err
	case dead < mostlyDeadRows*int64(pages) && !byPlace:
		return nil, nil
	case !c.facts.canUseCTID() || !c.facts.readsRanges():
		return []look{{w, true}}, nil
	default:
		return looksByPlace(w, pages), nil
	}
}

// byPlaces tells whether rows were deleted by their place, so that no checkpoint splits a
// look.
func byPlaces(trail purge.Trail) bool {
	return slices.ContainsFunc(trail.Checkpoints, func(w purge.Window) bool { return w.(window).physical })
}

// looksByPlace splits w into ranges of so many pages, and those to come.
func looksByPlace(w window, pages uint32) []look {
	w.physical, w.lower, w.upper = true, page(0), page(pages)
	looks := byChunks(w)
	looks[len(looks)-1].upper = page(lastPage)
	return looks
}

// byChunks splits a physical range, so that each look is short.
func byChunks(w window) (looks []look) {
	part := w
	for part.upper = page(part.lower.BlockNumber + chunkPages); part.upper.BlockNumber < w.upper.BlockNumber; part.upper.BlockNumber += chunkPages {
		looks = append(looks, look{part, true})
		part.lower = part.upper
	}
	part.upper = w.upper
	return append(looks, look{part, true})
}

// pages returns how many the table has.
func (c *conn) pages(ctx context.Context) (pages uint32, err error) {
	return pages, c.row(ctx, byIndex, &pages, sqlPages, c.facts.oid)
}

// Count implements [purge.Conn].
func (c *conn) Count(ctx context.Context, w purge.Window) (int64, error) {
	var count int64
	err := c.row(ctx, byIndex, &count, c.facts.on(sqlCount), w.(window).everywhere().args(c.facts.signature)...)
	return count, c.explain("count expired rows", err)
}

// countIn counts the rows of w, in its bounds of place where it has some.
func (c *conn) countIn(ctx context.Context, w window) (count int64, err error) {
	if !w.physical {
		return c.Count(ctx, w)
	}
	err = c.row(ctx, byPlace, &count, c.physical(sqlCountPhysical), w.args()...)
	return count, err
}

// Cut implements [purge.Conn]: a batch ends where the row after it begins.
func (c *conn) Cut(ctx context.Context, w purge.Window, size, batches int) (cut []purge.Batch, rest purge.Window, err error) {
	part := w.(window)
	if part.scanned {
		return []purge.Batch{{Window: part}}, nil, nil
	}
	if batches > 1 && size >= leastPages*c.facts.perPage && c.mayGoByPages(part) {
		if part, err = c.byPages(ctx, part); err != nil {
			return nil, nil, c.explain("find where expired rows are", err)
		}
	}
	switch {
	case part.whole && size >= c.facts.perPage:
		cut, rest = c.cutPages(part, size, batches)
		return cut, rest, nil
	case part.physical || !c.facts.indexed && c.facts.canUseCTID():
		return c.cutPhysical(ctx, part, size)
	default:
		return c.cutWindows(ctx, part, size, batches)
	}
}

// cutWindows is Cut by expiration.
func (c *conn) cutWindows(ctx context.Context, part window, size, batches int) (cut []purge.Batch, rest purge.Window, err error) {
	if !c.facts.indexed { // each end costs a reading of the whole table
		batches = 1
	}
	ends, last, tooLarge, err := c.endsInTime(ctx, part, size, batches)
	switch part.tooLarge = tooLarge; {
	case tooLarge:
		part.scanned = true
		return []purge.Batch{{Window: part}}, nil, nil
	case err != nil:
		return nil, nil, err
	}
	for _, e := range ends {
		if e.at == part.from { // more rows than a batch share one expiration
			break
		}
		batch := part
		batch.to = e.at
		cut = append(cut, purge.Batch{Window: batch, Rows: e.rows})
		part.from = e.at
	}
	switch {
	case last >= 0: // the last rows, which have no end but the window's own
		return append(cut, purge.Batch{Window: part, Rows: last}), nil, nil
	case len(cut) > 0:
		return cut, part, nil
	case c.facts.canUseCTID(): // their place tells them apart
		return c.cutPhysical(ctx, part, size)
	default:
		instant, after := part, part
		after.from = next(part.from)
		instant.to, instant.scanned = after.from, true
		return []purge.Batch{{Window: instant}}, after, nil
	}
}

// readShare is the part of the time left that one reading of the whole table may take.
const readShare = 8

// endsInTime is ends, but for a table that takes too long to read for each batch.
func (c *conn) endsInTime(ctx context.Context, w window, size, batches int) (ends []end, last int64, tooLarge bool, err error) {
	deadline, limited := ctx.Deadline()
	if !limited || c.facts.indexed || !c.facts.plain {
		ends, last, err = c.ends(ctx, w, size, batches)
		return ends, last, false, c.explain("find the next batch", err)
	}
	if w.tooLarge {
		return nil, 0, true, nil
	}
	brief, cancel := context.WithTimeout(ctx, time.Until(deadline)/readShare)
	defer cancel()
	ends, last, err = c.ends(brief, w, size, batches)
	err = c.explain("find the next batch", err)
	return ends, last, errors.Is(err, purge.ErrTimeout) && ctx.Err() == nil, err
}

// end is where a batch ends, and how many rows it has, 0 where that is not known.
type end struct {
	at   pgtype.Timestamp
	rows int64
}

// ends returns the ends of the next batches of w, and how many rows are left behind
// them: below 0 for more than a batch.
func (c *conn) ends(ctx context.Context, w window, size, batches int) (ends []end, last int64, err error) {
	if c.facts.indexed {
		asDeletes := byIndex // whose limits are in place, mostly
		asDeletes.bounded = true
		ends, last, err = c.endsWithin(ctx, asDeletes, c.mostInFlight(ctx), w, size, batches)
		if ctx.Err() != nil || sqlState(err) != pgerrcode.QueryCanceled || !c.tookItsTime() {
			return ends, last, err
		}
	}
	return c.endsWithin(ctx, byIndex, 1, w, size, batches)
}

// endsWithin is ends within the limits of so many statements of this plan.
func (c *conn) endsWithin(ctx context.Context, p plan, atOnce int, w window, size, batches int) (ends []end, last int64, err error) {
	sql := c.facts.on(sqlEnds)
	if err := c.prepare(ctx, p, sql, atOnce); err != nil {
		return nil, 0, err
	}
	last = -1
	read, _ := c.pg.Query(ctx, sql, w.args(size, batches)...) // the error comes last
	var at pgtype.Timestamp
	var rows *int64
	_, err = pgx.ForEachRow(read, []any{&at, &rows}, func() error {
		switch {
		case !at.Valid:
			last = *rows
		case rows == nil:
			ends = append(ends, end{at: at})
		default:
			ends = append(ends, end{at, *rows})
		}
		return nil
	})
	return ends, last, err
}

// mayGoByPages tells whether it is not known yet how many of the rows are in w.
func (c *conn) mayGoByPages(w window) bool {
	return !w.sampled && !w.physical && c.facts.indexed && c.facts.canUseCTID() && c.facts.readsRanges()
}

// byPages returns w by place where its rows are most of a large table: to delete them page
// by page takes no reading of the index, neither for its ends nor for its rows.
func (c *conn) byPages(ctx context.Context, w window) (window, error) {
	w.sampled = true
	var pages uint32
	err := c.row(ctx, byIndex, &pages, c.facts.on(sqlMostly), w.args(c.facts.oid, densePages, denseRows)...)
	if err == nil && pages > chunkPages && pages <= wholePages {
		w.physical, w.whole, w.lower, w.upper = true, true, page(0), page(pages)
	}
	return w, err
}

// cutPhysical is Cut by place instead of expiration, one batch at a time.
func (c *conn) cutPhysical(ctx context.Context, part window, size int) ([]purge.Batch, purge.Window, error) {
	if !part.physical {
		var err error
		if part, err = c.everyPlace(ctx, part); err != nil {
			return nil, nil, c.explain("read the table's size", err)
		}
	}
	cut, rest := purge.Batch{}, part
	pages := uint32(chunkPages)
	if !c.facts.readsRanges() {
		pages = listPages
	}
	if end := part.lower.BlockNumber + pages; end < part.upper.BlockNumber {
		part.upper = page(end)
	}
	err := c.row(ctx, byPlace, &part.upper, c.physical(sqlEndPhysical), part.args(size)...)
	switch {
	case err == nil:
		cut.Rows = int64(size)
	case !errors.Is(err, pgx.ErrNoRows):
		return nil, nil, c.explain("find the next batch", err)
	}
	cut.Window = part
	switch rest.lower = part.upper; {
	case rest.lower != rest.upper:
	case rest.wrap > 0:
		rest.lower, rest.upper, rest.wrap = page(0), page(rest.wrap), 0
	default:
		return []purge.Batch{cut}, nil, nil
	}
	return []purge.Batch{cut}, rest, nil
}

// cutPages is Cut by whole pages, as many as can't have more rows than a batch, so that
// nothing need be read.
func (c *conn) cutPages(part window, size, batches int) (cut []purge.Batch, rest purge.Window) {
	end, pages := part.upper, uint32(size/c.facts.perPage)
	for len(cut) < batches && part.lower != end {
		if part.upper = end; part.lower.BlockNumber+pages < end.BlockNumber {
			part.upper = page(part.lower.BlockNumber + pages)
		}
		cut = append(cut, purge.Batch{Window: part})
		part.lower = part.upper
	}
	if part.lower == end {
		return cut, nil
	}
	part.upper = end
	return cut, part
}

// everyPlace returns w by place, up to the last page of now. Without an index a run may
// be too short for the whole table, so it begins where a sample has the most rows.
func (c *conn) everyPlace(ctx context.Context, w window) (window, error) {
	pages, err := c.pages(ctx)
	if err != nil {
		return w, err
	}
	w.physical, w.lower, w.upper = true, page(0), page(pages)
	if c.facts.indexed || pages < 4*samplePages {
		return w, nil
	}
	var first int64
	part := int64(pages/sampledParts + 1)
	err = c.row(ctx, inSequence, &first, c.facts.on(sqlSample), w.from, w.to, 100*float64(samplePages)/float64(pages), part)
	if err == nil && first > 0 && first < int64(pages) {
		w.lower, w.wrap = page(uint32(first)), uint32(first)
	}
	return w, err
}

// physical returns sql, on a physical range, in the form that the server reads
// best.
func (c *conn) physical(sql string) string {
	if !c.facts.readsRanges() {
		sql = strings.Replace(sql, "ctid >=", sqlPlaces+"ctid >=", 1)
	}
	return c.facts.on(sql)
}

// row reads the one value that sql returns into dest. Preparing pays from the second
// time on: planning looks at the end of the index, where the deleted entries are.
func (c *conn) row(ctx context.Context, plan plan, dest any, sql string, args ...any) error {
	if !c.seen[sql] {
		c.seen[sql] = true
		l, err := c.newLimits(ctx, plan, 1)
		if err != nil {
			return err
		}
		return c.once(ctx, l, dest, sql, args)
	}
	if err := c.prepare(ctx, plan, sql, 1); err != nil {
		return err
	}
	return c.pg.QueryRow(ctx, sql, args...).Scan(dest)
}
