package purge

import (
	"errors"
	"sync"
	"time"
)

// minBatchSize is the size below which no batch shrinks for being slow: then its
// rows are not what takes the time.
const minBatchSize = 100

// sizer says how many rows a batch has: as many as take the time aimed at, between
// minBatchSize and the most that are allowed. The size grows by doubling, and moves
// only where the time is off by half, so that batches which are cut ahead mostly
// keep one size.
type sizer struct {
	most   int
	target time.Duration // 0 is to keep the size at most

	mu   sync.Mutex
	size int
}

func newSizer(p Policy) *sizer {
	return &sizer{most: p.BatchSize, target: p.BatchTarget, size: p.BatchSize}
}

// Next returns how many rows a batch has that is cut now.
func (s *sizer) Next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// Observe takes in what came of a batch that was cut at so many rows. One that was
// cut before the size moved says nothing about it.
func (s *sizer) Observe(cut int, deleted int64, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := cut
	switch {
	case cut != s.size:
		return
	case errors.Is(err, ErrTimeout): // whatever it aims at, it must fit
		size = cut / splitInto
	case s.target == 0:
	case errors.Is(err, ErrLocked):
		size = cut / 2
	case err != nil:
	case took > 2*s.target:
		size = min(cut/2, int(float64(cut)*s.target.Seconds()/took.Seconds()))
	case took < s.target/2 && deleted > int64(cut/2):
		size = 2 * cut
	}
	s.size = max(min(size, s.most), min(minBatchSize, s.most))
}
