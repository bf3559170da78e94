package purge

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// mostRefused is how many rows in turn are tried one by one and refused, before the
// others that are left count as refused too.
const mostRefused = 1000

// errTakesMore is for a row that can't go alone.
var errTakesMore = errors.New("a row takes more rows of the table with it than a batch may have")

// refusedError ends a sweep that left rows which the database refuses to delete.
type refusedError struct {
	rows       int64 // at least
	more       bool  // that were not tried one by one
	unfinished bool  // the sweep ended before all rows were tried
	inTurn     int   // refusals since a batch got through
	cause      error // of the first
	mend       string
}

// Error says how many rows stay, and why.
func (r refusedError) Error() string {
	rows := Grouped(r.rows) + " rows stay"
	if r.rows == 1 {
		rows = "1 row stays"
	}
	switch {
	case r.more:
		rows = "more than " + rows + ", and the others were not tried"
	case r.unfinished:
		rows += " of those that were tried"
	default:
		rows += ", and all others are deleted"
	}
	return fmt.Sprintf("%s: %s%s", rows, r.cause, r.mend)
}

// Unwrap returns the cause.
func (r refusedError) Unwrap() error { return r.cause }

// overfull takes back a batch that was more than it may be: rows came, or they take others
// with them. A single row comes once more after all others, which may be gone by then.
func (b *backlog) overfull(c *batch) {
	switch {
	case c.size > 1:
		b.todo = slices.Insert(b.todo, 0, c.again(c.size/2, c.locked))
	case c.last:
		c.err = errTakesMore
		b.refuse(c)
	default:
		c.last = true
		b.todo = append(b.todo, c.again(1, c.locked))
	}
}

// refuse leaves rows aside that the database refuses to delete.
func (b *backlog) refuse(c *batch) {
	b.aside = append(b.aside, c.again(0, c.locked))
	b.refused.rows += max(1, c.gone.Stay)
	b.refused.cause = cmp.Or(b.refused.cause, c.err)
	if b.refused.inTurn++; b.refused.inTurn >= mostRefused {
		b.refused.more = true
		b.stop(b.refused)
	}
}
