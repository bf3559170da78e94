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
	lent    int // connections beyond those of the databases that are served
}

func newQueue(parallel int) *queue { return &queue{parallel: parallel} }

// shuffle has all runs wait, in another order each time.
func (q *queue) shuffle(runs []*run) {
	q.waiting = slices.Clone(runs)
	rand.Shuffle(len(q.waiting), func(i, j int) { q.waiting[i], q.waiting[j] = q.waiting[j], q.waiting[i] })
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
	if r.lent {
		r.lent = false
		q.lent--
	}
	if again {
		q.later = append(q.later, r)
	}
}

// lend tells whether r may have one more connection than its own until its turn
// ends: where fewer databases want a turn than may have one at once.
func (q *queue) lend(r *run) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !r.lent && q.lent+q.active+len(q.waiting)+len(q.later) < q.parallel {
		r.lent = true
		q.lent++
	}
	return r.lent
}
