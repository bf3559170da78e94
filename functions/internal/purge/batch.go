package purge

import "errors"

// part is a stretch of the table still to be cut.
type part struct {
	window Window
	size   int  // most rows a batch has here; 0 is as many as elsewhere
	locked bool // others held a row of it
	last   bool // one row of it took more than itself, so that all others come first
}

// batch is a Batch on its way to a worker and back.
type batch struct {
	Batch
	size     int   // most rows it was cut at
	reserved int64 // rows of the quota
	retried  bool  // a piece of one that was tried
	locked   bool
	last     bool
	gone     Deleted
	err      error
}

// again returns what is left of b as a part, of which batches have at most so many
// rows.
func (b *batch) again(size int, locked bool) part { return part{b.Window, size, locked, b.last} }

// more returns b's window as a part. Where it was a piece, the next one may be larger.
func (b *batch) more() part {
	if b.retried {
		return b.again(2*b.size, b.locked)
	}
	return b.again(0, b.locked)
}

// isSlow tells whether b has few rows and ran out of time.
func (b *batch) isSlow(s *sizer) bool {
	return errors.Is(b.err, ErrTimeout) && b.size < min(slowRows, s.most) && b.gone.Took > 2*s.target
}
