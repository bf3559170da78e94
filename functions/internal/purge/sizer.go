package purge

import (
	"errors"
	"sync"
	"time"
)

const (
	// minBatchSize is how many rows a run begins with, as it does not know how long
	// they take, and how many a throttled batch has. No lock shrinks a batch below.
	minBatchSize = 100
	// learnBy is how many times as large the next batch is while each takes next to no
	// time; later the size doubles.
	learnBy = 4
)

// sizer says how many rows a batch has: as many as take the time aimed at, and never
// more than are allowed. The size moves only where the time is off by half, so that
// batches which are cut ahead mostly keep one size.
type sizer struct {
	most   int
	target time.Duration // 0 is to keep the size at most

	mu       sync.Mutex
	size     int
	learning bool // no batch has taken its time yet
	fits     int  // rows that take the time aimed at, whatever time was left since; 0 is not known
	shrunk   shrunk
	floor    int // smaller batches were not quicker
}

// shrunk is the batch that made the size shrink last.
type shrunk struct {
	size int
	took time.Duration
}

func newSizer(p Policy) *sizer {
	s := &sizer{most: p.BatchSize, target: p.BatchTarget, size: p.BatchSize}
	if s.target > 0 && s.most > minBatchSize {
		s.size, s.learning = minBatchSize, true
	}
	return s
}

// Next returns how many rows a batch has that is cut now.
func (s *sizer) Next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// Learning tells whether the next size is anybody's guess, so that there is no sense
// in cutting ahead.
func (s *sizer) Learning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.learning
}

// Slow tells whether rows take so long that a batch has few of them.
func (s *sizer) Slow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fits > 0 && s.fits < min(slowRows, s.most)
}

// Observe takes in what came of a batch that was cut at so many rows. One that was
// cut before the size moved says nothing about it.
func (s *sizer) Observe(cut int, deleted int64, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cut != s.size {
		return
	}
	size := cut
	switch {
	case errors.Is(err, ErrTimeout): // whatever it aims at, it must fit
		size, s.floor, s.learning = cut/splitInto, 0, false
	case s.target == 0:
	case errors.Is(err, ErrLocked):
		size = max(cut/2, min(cut, minBatchSize))
	case err != nil:
	case took > 2*s.target:
		size, s.learning = s.shrink(cut, took), false
		s.fits = max(1, size)
	case took < s.target/2 && deleted > int64(cut/2):
		size = s.grow(cut, took)
		if s.fits > 0 {
			s.fits = max(s.fits, size)
		}
	default:
		s.fits, s.learning = cut, false
	}
	s.size = max(1, min(size, s.most))
}

// grow returns the size after that of a batch that was quick.
func (s *sizer) grow(cut int, took time.Duration) int {
	if s.learning && took < s.target/(2*learnBy) {
		s.learning = learnBy*cut < s.most
		return learnBy * cut
	}
	s.learning = false
	return 2 * cut
}

// shrink returns the size after that of a batch that was slow. Where a smaller one took
// as long as the larger one before it, its rows are not what takes the time.
func (s *sizer) shrink(cut int, took time.Duration) int {
	switch last := s.shrunk; {
	case last.size >= 2*cut && took > last.took/2:
		s.floor = last.size
	case cut == s.floor && took < 2*last.took: // as it was
	default:
		s.floor, s.shrunk = 0, shrunk{cut, took}
	}
	return max(s.floor, min(cut/2, int(float64(cut)*s.target.Seconds()/took.Seconds())))
}
