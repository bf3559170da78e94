package purge

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// queue hands out the databases of a run so that none starves: in another order
// in each run, and each with a fair share of the time that is left. One that
// wants more than its share waits for another turn until all have had one.
type queue struct {
	parallel int

	mu      sync.Mutex
	waiting []*run // for a turn in this round
	later   []*run // for one in the next
	active  int
}

func newQueue(runs []*run, parallel int) *queue {
	q := &queue{parallel: parallel, waiting: slices.Clone(runs)}
	rand.Shuffle(len(q.waiting), func(i, j int) { q.waiting[i], q.waiting[j] = q.waiting[j], q.waiting[i] })
	return q
}

// next answers the next database and how long its turn may take; 0 is as long as
// there is. It answers nil when there is none.
func (q *queue) next(ctx context.Context) (*run, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.waiting, q.later = q.later, nil
	}
	if len(q.waiting) == 0 {
		return nil, 0
	}
	r := q.waiting[0]
	q.waiting = q.waiting[1:]
	q.active++
	deadline, limited := ctx.Deadline()
	wanting := q.active + len(q.waiting)
	if !limited || wanting <= q.parallel {
		return r, 0
	}
	return r, time.Until(deadline) * time.Duration(q.parallel) / time.Duration(wanting)
}

// done ends a turn. One that wants another gets it in the next round.
func (q *queue) done(r *run, again bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.active--
	if again {
		q.later = append(q.later, r)
	}
}
