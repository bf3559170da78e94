package purge

import (
	"math"
	"sync"
)

// quota shares Policy.MaxRows among the databases of a run. Rows are reserved
// before they are deleted; what a reservation did not use goes back.
type quota struct {
	mu       sync.Mutex
	released sync.Cond
	left     int64
	reserved int64 // and not released
}

func newQuota(most int64) *quota {
	if most <= 0 {
		most = math.MaxInt64
	}
	q := &quota{left: most}
	q.released.L = &q.mu
	return q
}

// Reserve returns up to n rows. Where none is left it returns 0 at once, or with
// wait when nothing can come back from the reservations of others any more.
func (q *quota) Reserve(n int64, wait bool) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	for wait && q.left == 0 && q.reserved > 0 {
		q.released.Wait()
	}
	n = max(0, min(n, q.left))
	q.left -= n
	q.reserved += n
	return n
}

// Release ends a reservation of which so many rows were used. With a reservation of
// 0 it corrects how many were.
func (q *quota) Release(reserved, used int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reserved -= reserved
	q.left = max(0, q.left+reserved-used)
	q.released.Broadcast()
}
