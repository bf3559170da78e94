package purge

import "time"

// leastBatch is the size below which no batch shrinks for being slow: then its
// rows are not what takes the time.
const leastBatch = 100

// size is how many rows a batch has: as many as take the time aimed at, between
// leastBatch and the most that are allowed. It moves by halves, and only where the
// time is off by half, so that batches which are cut ahead mostly keep one size.
type size struct {
	rows   int // 0 is most
	most   int
	target time.Duration // 0 is to keep rows at most
}

func newSize(p Policy) size { return size{rows: p.BatchSize, most: p.BatchSize, target: p.BatchTarget} }

// learn takes in that a batch cut at so many rows took so long. One that was cut
// before the size moved says nothing about it.
func (s *size) learn(batch int, deleted int64, took time.Duration) {
	switch {
	case s.target == 0 || batch != s.rows:
	case took > 2*s.target:
		s.rows = max(s.rows/2, min(leastBatch, s.most))
	case took < s.target/2 && deleted > int64(batch/2):
		s.rows = min(2*s.rows, s.most)
	}
}

// shrink takes in that a batch cut at so many rows met a lock.
func (s *size) shrink(batch int) {
	if s.target > 0 && batch == s.rows {
		s.rows = max(s.rows/2, min(leastBatch, s.most))
	}
}
