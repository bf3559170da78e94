package purge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sync/semaphore"
)

// spareSlots is how many connections of the server a run leaves to others, the API
// first, where it takes more than one.
const spareSlots = 2

// slots are the connections that a run may have open at once. With several databases it
// begins with one, and has more as the server turns out to have them to spare.
type slots struct {
	*semaphore.Weighted

	mu      sync.Mutex
	most    int // as the policy has it
	allowed int // of them, by what the server had to spare
	open    int
	several bool // databases
}

func newSlots(p Policy, databases int) *slots {
	s := &slots{most: p.Parallel * p.Concurrency, several: databases > 1}
	s.Weighted, s.allowed = semaphore.NewWeighted(int64(s.most)), s.most
	if s.several {
		s.TryAcquire(int64(s.most - 1)) // nobody has any yet
		s.allowed = 1
	}
	return s
}

// atOnce returns how many connections may be open at once.
func (s *slots) atOnce() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allowed
}

// enter takes note of a connection that was opened. Where the server has few to spare, and
// it is not the only one of the run, it returns ErrNoSlot, and the connection is to be
// closed: the run does with fewer. A run of one database asks for further ones alone.
func (s *slots) enter(ctx context.Context, conn Conn) error {
	s.mu.Lock()
	s.open++
	before := s.open
	s.mu.Unlock()
	alone := before == 1
	if alone && !s.several {
		return nil
	}
	free := freeSlots(ctx, conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if free < spareSlots && !alone {
		s.open--
		return errFewSlots
	}
	s.allow(min(before, s.open) + min(free-spareSlots, s.most))
	return nil
}

// failed takes note of a database that could not be opened, which tells nothing of what
// there is to spare, unless that is the reason: the run goes on with one more.
func (s *slots) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !errors.Is(err, ErrNoSlot) {
		s.allow(s.allowed + 1)
	}
}

// leave takes note of connections that will be closed.
func (s *slots) leave(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open -= n
}

// allow lets the run have so many connections open at once, or as many as it may already.
func (s *slots) allow(atOnce int) {
	if atOnce = min(atOnce, s.most); atOnce > s.allowed {
		s.Release(int64(atOnce - s.allowed))
		s.allowed = atOnce
	}
}

var errFewSlots = fmt.Errorf("%w but the last %d, which are left to the API", ErrNoSlot, spareSlots)

// freeSlots returns how many more connections conn's server has for the login; more than
// there can be where it does not tell.
func freeSlots(ctx context.Context, conn Conn) int {
	if counter, ok := conn.(SlotCounter); ok {
		if free, err := counter.FreeSlots(ctx); err == nil {
			return free
		}
	}
	return math.MaxInt
}
