package purge

import (
	"errors"
	"sync"
	"time"
)

// leastBatch is the size below which no batch shrinks for being slow: then its
// rows are not what takes the time.
const leastBatch = 100

// size is how many rows a batch has: as many as take the time aimed at, between
// leastBatch and the most that are allowed. It grows by doubling, and moves only
// where the time is off by half, so that batches which are cut ahead mostly keep
// one size.
type size struct {
	most   int
	target time.Duration // 0 is to keep rows at most

	mu   sync.Mutex
	rows int
}

func newSize(p Policy) *size {
	return &size{most: p.BatchSize, target: p.BatchTarget, rows: p.BatchSize}
}

// now answers how many rows a batch has that is cut now.
func (s *size) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows
}

// learn takes in what came of a batch cut at so many rows. One that was cut before
// the size moved says nothing about it.
func (s *size) learn(batch int, deleted int64, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := batch
	switch {
	case batch != s.rows:
		return
	case errors.Is(err, ErrTimeout): // whatever it aims at, it must fit
		rows = batch / splitInto
	case s.target == 0:
	case errors.Is(err, ErrLocked):
		rows = batch / 2
	case err != nil:
	case took > 2*s.target:
		rows = min(batch/2, int(float64(batch)*s.target.Seconds()/took.Seconds()))
	case took < s.target/2 && deleted > int64(batch/2):
		rows = 2 * batch
	}
	s.rows = max(min(rows, s.most), min(leastBatch, s.most))
}
