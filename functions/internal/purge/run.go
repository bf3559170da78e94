package purge

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Run does what policy says in each of the target's databases. It returns what
// happened in every one of them, in their order; [Result.Err] tells whether
// any failed. report is called once for each database as soon as it is done,
// by one goroutine at a time.
func Run(ctx context.Context, target Target, policy Policy, report func(DatabaseResult)) Result {
	start := time.Now()
	policy.Parallel, policy.Concurrency = max(1, policy.Parallel), max(1, policy.Concurrency)
	work, overrun, cancel := withStopDeadline(ctx, policy, start)
	defer cancel()
	if target.Tables == nil {
		target.Tables = []Table{ClientAccessTokens}
	}
	r := &run{
		target: target, policy: policy, overrun: overrun, began: start,
		quota:    newQuota(policy.MaxRows),
		pacer:    newPacer(work, policy, target.Log),
		schedule: schedule{parallel: policy.Parallel},
		slots:    newSlots(policy, len(target.Databases)),
	}
	noTime := work.Err() != nil && ctx.Err() == nil && overrun == Deadline
	if noTime {
		r.target.Findings = append(r.findings(), NoTime.Found("less time was left than STOP_BEFORE when the run began: raise the function's timeout or lower STOP_BEFORE"))
	}
	visits := make([]*visit, len(target.Databases))
	for i, d := range target.Databases {
		visits[i] = newVisit(r, d)
	}
	r.schedule.shuffle(visits)

	var reporting sync.Mutex
	var workers sync.WaitGroup
	for range min(policy.Parallel, len(visits)) {
		workers.Go(func() {
			for v := r.schedule.next(); v != nil; v = r.schedule.next() {
				again := v.serve(ctx, work)
				r.schedule.done(v, again)
				if !again {
					reporting.Lock()
					report(v.result())
					reporting.Unlock()
				}
			}
		})
	}
	workers.Wait()

	result := Result{Status: Complete, Action: policy.Action, Databases: make([]DatabaseResult, len(visits))}
	for i, v := range visits {
		result.add(i, v.result())
	}
	if result.AllSkipped() {
		result.Status = Failed
	}
	result.DurationMs = time.Since(start).Milliseconds()
	return result
}

// run is what all databases of a run share.
type run struct {
	target   Target
	policy   Policy
	overrun  StopReason // what it means that the time is over
	began    time.Time
	quota    *quota
	pacer    *pacer
	slots    *slots
	schedule schedule
	reached  atomic.Bool // the server was there: where it can't be reached any more, it is waited for
	served   atomic.Bool // a database was open
}

// findings returns those that each database has.
func (r *run) findings() []Finding {
	return append([]Finding{}, r.target.Findings...) // [] in JSON
}

// schedule gives turns to the databases so that none starves: in another order in
// each run, and each with a fair share of the time that is left. One that wants more
// than its share waits for another turn until all have had one.
type schedule struct {
	parallel int

	mu      sync.Mutex
	waiting []*visit // in this round
	later   []*visit // for the next round
	active  int
}

// shuffle has all databases wait, in another order each time.
func (s *schedule) shuffle(visits []*visit) {
	s.waiting = slices.Clone(visits)
	rand.Shuffle(len(s.waiting), func(i, j int) { s.waiting[i], s.waiting[j] = s.waiting[j], s.waiting[i] })
}

// next returns the next database, nil when there is none.
func (s *schedule) next() *visit {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		s.waiting, s.later = s.later, nil
	}
	if len(s.waiting) == 0 {
		return nil
	}
	v := s.waiting[0]
	s.waiting = s.waiting[1:]
	s.active++
	return v
}

// share returns how long a turn may take where no more than atOnce have one at a time;
// 0 is as long as there is.
func (s *schedule) share(ctx context.Context, atOnce int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline, limited := ctx.Deadline()
	wanting, atOnce := s.active+len(s.waiting), min(atOnce, s.parallel)
	if !limited || wanting <= atOnce {
		return 0
	}
	return time.Until(deadline) * time.Duration(atOnce) / time.Duration(wanting)
}

// done ends a turn. One that wants another gets it in the next round.
func (s *schedule) done(v *visit, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if again {
		s.later = append(s.later, v)
	}
}

// spare tells whether fewer databases want a turn than may have one at once.
func (s *schedule) spare() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active+len(s.waiting)+len(s.later) < s.parallel
}
