package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// MaxClockSkew is how far the database's clock and ours may lie apart. A clock
// that runs ahead makes live tokens look expired; which of the two is wrong
// cannot be known here, so nothing is deleted.
const MaxClockSkew = 5 * time.Minute

// closingTime bounds the last look at what a stopped run leaves behind. It
// comes out of Policy.StopBefore, of which it takes a quarter at most.
const closingTime = 2 * time.Second

// A connection that is lost in the middle of a run is opened anew, first after
// lostRest, then after twice that and so on, for lostPatience: a server that
// restarts or fails over is back by then.
const (
	lostRest     = 200 * time.Millisecond
	lostRestMost = 10 * time.Second
	lostPatience = 2 * time.Minute
)

// openPatience is how long a database that can be reached takes to open at most.
// It has that time even where its share is less.
const openPatience = 2 * time.Second

// errMaxRows ends a sweep although there is time and nothing went wrong.
var errMaxRows = errors.New("the cap on rows is reached")

// Run does what policy says in each of the target's databases. It answers what
// happened in every one of them, in their order; [Result.Err] tells whether
// any failed. report is called once for each database as soon as it is done,
// by one goroutine at a time.
func Run(ctx context.Context, target Target, policy Policy, report func(DatabaseResult)) Result {
	start := time.Now()
	work, overrun, cancel := stopInTime(ctx, policy, start)
	defer cancel()
	noTime := work.Err() != nil && ctx.Err() == nil && overrun == Deadline
	rows, speed := newRowCap(policy.MaxRows), new(throttle)

	runs := make([]*run, len(target.Databases))
	q := newQueue(max(1, policy.Parallel))
	for i, d := range target.Databases {
		r := &run{target: target, policy: policy, database: d, overrun: overrun, cap: rows, throttle: speed, lend: q.lend, size: newSize(policy), log: target.Log.With("database", d.Name)}
		r.res = DatabaseResult{Database: d.Name, Engine: target.Name, Server: target.Server, Findings: append([]Finding{}, target.Findings...)}
		if noTime {
			r.find(Warning("no-time", "less time was left than STOP_BEFORE when the run began: raise the function's timeout or lower STOP_BEFORE"))
		}
		runs[i] = r
	}
	q.shuffle(runs)
	var reporting sync.Mutex
	var workers sync.WaitGroup
	for range min(q.parallel, len(runs)) {
		workers.Go(func() {
			for r, share := q.next(work); r != nil; r, share = q.next(work) {
				again := r.serve(ctx, work, share)
				q.done(r, again)
				if !again {
					reporting.Lock()
					report(r.res)
					reporting.Unlock()
				}
			}
		})
	}
	workers.Wait()

	result := Result{Status: Complete, Action: policy.Action, Databases: make([]DatabaseResult, len(runs))}
	for i, r := range runs {
		result.add(i, r.res)
	}
	result.DurationMs = time.Since(start).Milliseconds()
	return result
}

// stopInTime derives the context that ends when the run must stop, and says
// what it means when that happens.
func stopInTime(ctx context.Context, p Policy, start time.Time) (context.Context, StopReason, context.CancelFunc) {
	deadline, limited := ctx.Deadline()
	deadline, reason := deadline.Add(-p.StopBefore), Deadline
	if longest := start.Add(p.MaxDuration); p.MaxDuration > 0 && (!limited || longest.Before(deadline)) {
		deadline, reason, limited = longest, MaxDuration, true
	}
	if !limited {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, reason, cancel
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	return ctx, reason, cancel
}

// run is the purge of one database.
type run struct {
	target   Target
	policy   Policy
	database Database
	overrun  StopReason // what it means that the time is over
	cap      *rowCap
	throttle *throttle
	began    time.Time       // its turn
	half     time.Duration   // of that turn; 0 is without end
	lend     func(*run) bool // of the queue
	lent     bool            // the last of the tables is for reading alone
	log      *slog.Logger
	tables   []*conn   // the first claims the database; the last reads
	size     *size     // of the batches
	expired  Range     // all that the run may delete
	left     []part    // what a stopped sweep did not get to
	unsure   []job     // of which the acknowledgement was lost
	shut     bool      // a look met a lock on the whole table, and none got through since
	lost     time.Time // when the connection was; zero while there is one
	rest     time.Duration
	res      DatabaseResult
}

// serve fills r.res, whatever happens. work ends in time for the closing look,
// which outer still allows. It answers true when this database wants another turn:
// when only its share of the time is over, or the connection was lost.
func (r *run) serve(outer, work context.Context, share time.Duration) (again bool) {
	start := time.Now()
	defer func() { r.res.DurationMs += time.Since(start).Milliseconds() }()
	if r.database.Closed != "" {
		r.skip("database-closed", r.database.Closed)
		return false
	}
	late := work.Err()
	if late != nil && r.res.Status != "" { // there was a turn before
		return false
	}
	err := late
	opened, cut := false, false
	if late == nil {
		patience, cancel := within(work, max(share, openPatience), share > 0)
		err = r.guard(patience, func() error { return r.open(patience, r.policy.Action == Purge) })
		opened, cut = err == nil, err != nil && patience.Err() != nil
		cancel()
	}
	// A database that was open before is there, unless it was lost, and one that is
	// there opens soon. Any other may be out of reach, which must not look like too
	// little time.
	opening := time.Since(start)
	there := opening < openPatience
	if r.res.Cutoff != nil {
		there = r.lost.IsZero()
	}
	timeout := cut && there
	over := cut && work.Err() == nil // its turn alone
	switch {
	case opened:
		r.lost = time.Time{}
		defer r.close(outer)
		turn, cancel := within(work, share, share > 0)
		defer cancel()
		r.began = time.Now()
		if deadline, limited := turn.Deadline(); limited {
			r.half = max(1, time.Until(deadline)/2)
		}
		err = r.guard(turn, func() error { return r.act(turn, opening) })
		timeout = errors.Is(err, ErrTimeout) || turn.Err() != nil
		over = timeout && share > 0 && work.Err() == nil // the server gives up before the turn ends
	case cut && r.lost.IsZero(): // the server may still be about to let it in
		r.lost, r.rest = time.Now(), lostRest
	}
	var unfit Unfit
	switch {
	case err == nil:
		r.end(Complete, doneReason[r.policy.Action])
	case errors.As(err, &unfit) && r.database.Matched && !unfit.Server:
		r.skip(unfit.Code, unfit.Error())
		return false
	case errors.Is(err, ErrAlreadyRunning) && !r.mayBeOurs():
		r.end(Partial, AlreadyRunning)
		r.guard(work, func() error { return r.peek(work) }) //nolint:errcheck // logged; the status stands
	case errors.Is(err, errMaxRows):
		r.end(Partial, MaxRows)
	case errors.Is(outer.Err(), context.Canceled):
		r.end(Partial, Canceled)
	case late != nil, timeout:
		r.end(Partial, r.overrun)
		again = over
	default:
		r.fail(err)
		again = over || r.restAfterLoss(work, err)
	}
	if r.res.Status == Partial && r.shut && r.policy.Action != Purge { // a purge looks once more
		r.find(lockedRows)
	}
	// One that does not answer any more would take what time there is left.
	silent := errors.Is(err, ErrLost) || len(r.unsure) > 0
	if r.res.Status != Complete && r.expired != nil && r.policy.Action == Purge && opened && !silent {
		r.guard(outer, func() error { r.lookAtLeftovers(outer); return nil }) //nolint:errcheck // logged; the status stands
	}
	return again
}

// mayBeOurs tells whether the run that holds the database may be a session of ours
// that the server has not given up yet: one that was lost, or cut while it opened.
func (r *run) mayBeOurs() bool {
	return !r.lost.IsZero() && (r.res.Cutoff != nil || time.Since(r.lost) < lostRestMost)
}

// within limits ctx, if there is a limit.
func within(ctx context.Context, d time.Duration, limited bool) (context.Context, context.CancelFunc) {
	if limited {
		return context.WithTimeout(ctx, d)
	}
	return ctx, func() {}
}

// restAfterLoss tells whether err is the loss of a connection that this run has
// had, and worth another try; if so, it rests first.
func (r *run) restAfterLoss(work context.Context, err error) bool {
	if !errors.Is(err, ErrAlreadyRunning) && (r.res.Cutoff == nil || !errors.Is(err, ErrLost)) {
		return false
	}
	if r.lost.IsZero() {
		r.lost, r.rest = time.Now(), lostRest
	}
	if time.Since(r.lost) > lostPatience {
		return false
	}
	r.log.WarnContext(work, "connection lost", "error", err.Error(), "againInMs", r.rest.Milliseconds())
	sleep(work, r.rest)
	r.rest = min(2*r.rest, lostRestMost)
	return work.Err() == nil
}

// lockedRows is found where a run stopped and met locks to the end.
var lockedRows = Warning("locked-rows", "rows stayed locked by other sessions until the run ended: look for a long transaction on the table; the next run tries again")

// fail ends a run by an error. One with a code is a finding too.
func (r *run) fail(err error) {
	r.end(Failed, Errored)
	r.res.Error = err.Error()
	if unfit, ok := errors.AsType[Unfit](err); ok {
		r.find(Fault(unfit.Code, unfit.Message))
	}
}

// skip ends a run in a database that a pattern matched and that can't be purged.
func (r *run) skip(code, message string) {
	r.end(Skipped, SkippedReason)
	r.find(Info(code, message))
}

// open opens one more connection to the table.
func (r *run) open(ctx context.Context, claim bool) error {
	t, err := r.target.Engine.Open(ctx, r.res.Database, claim)
	if err == nil {
		r.tables = append(r.tables, newConn(t))
	}
	return err
}

// close ends all connections at once: each may take a moment.
func (r *run) close(ctx context.Context) {
	var closing sync.WaitGroup
	for _, t := range r.tables {
		closing.Go(func() {
			r.guard(ctx, func() error { t.table.Close(); return nil }) //nolint:errcheck // logged; every batch is committed
		})
	}
	closing.Wait()
	r.tables = nil
}

// reader answers the connection that reads, which deletes as well where none is
// lent for reading alone.
func (r *run) reader() *conn { return r.tables[len(r.tables)-1] }

// deleters answers the connections that delete.
func (r *run) deleters() []*conn {
	if r.lent && len(r.tables) > 1 {
		return r.tables[:len(r.tables)-1]
	}
	return r.tables
}

// guard makes a panic in do an error: of this database, and of no other.
func (r *run) guard(ctx context.Context, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil { // its value may quote anything, so only its type is told
			r.log.ErrorContext(ctx, "panic", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = fmt.Errorf("a bug: panic of type %T, its stack is in the log", p)
		}
	}()
	return do()
}

var doneReason = map[Action]StopReason{Purge: Drained, DryRun: DryRunDone, Check: CheckDone}

func (r *run) end(status Status, reason StopReason) {
	r.res.Status, r.res.StopReason, r.res.Error = status, reason, ""
}

func (r *run) find(f Finding) {
	for _, have := range r.res.Findings {
		if have.Code == f.Code {
			return
		}
	}
	r.res.Findings = append(r.res.Findings, f)
	slices.SortStableFunc(r.res.Findings, bySeverity)
}

// act runs the action and answers nil when it was done to the end.
func (r *run) act(ctx context.Context, opening time.Duration) error {
	facts := r.tables[0].table.Facts()
	for _, f := range facts.Findings {
		r.find(f)
	}
	if r.res.Cutoff == nil { // else this is another turn of the same run
		r.res.Cutoff, r.res.Grace = instant(facts.Now.Add(-r.policy.Grace)), r.policy.Grace
	}
	r.expired = r.tables[0].table.Expired(r.res.Cutoff.Time)
	if r.policy.Action == Check {
		return r.check(ctx, facts, opening)
	}
	if clocks, ok := skew(facts.Now); !ok {
		r.find(Fault("clock-skew", clocks))
		return fmt.Errorf("clock-skew: %s", clocks)
	}
	switch r.policy.Action {
	case DryRun:
		return r.dryRun(ctx)
	default:
		if err := r.settle(ctx); err != nil {
			return err
		}
		return r.drain(ctx)
	}
}

// dryRun counts what a purge would delete.
func (r *run) dryRun(ctx context.Context) error {
	oldest, found, err := r.oldest(ctx)
	if err != nil {
		return err
	}
	if r.res.looked(nil); found == nil {
		return nil
	}
	r.res.OldestExpiration = instant(oldest)
	r.res.looked(r.res.OldestExpiration)
	rows, err := r.rows(ctx, found)
	if err != nil {
		return err
	}
	r.res.ExpiredRows = r.cap.take(rows, false)
	r.cap.settle(r.res.ExpiredRows, r.res.ExpiredRows)
	if r.res.ExpiredRows < rows {
		r.find(Info("max-rows", fmt.Sprintf("%d rows have expired; MAX_ROWS lets one run delete %d of them here", rows, r.res.ExpiredRows)))
	}
	return nil
}

// oldest looks for the oldest of all expired rows.
func (r *run) oldest(ctx context.Context) (at time.Time, found Range, err error) {
	err = r.patiently(ctx, func() (err error) {
		at, found, err = r.reader().oldest(ctx, r.expired)
		return err
	})
	return at, found, err
}

// rows counts those in found.
func (r *run) rows(ctx context.Context, found Range) (rows int64, err error) {
	err = r.patiently(ctx, func() (err error) {
		rows, err = r.reader().count(ctx, found)
		return err
	})
	return rows, err
}

// patiently repeats do while the table as a whole is locked.
func (r *run) patiently(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil {
			r.shut = false
		}
		if !errors.Is(err, ErrLocked) {
			return err
		}
		r.shut = true
		if sleep(ctx, lockedRest); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// peek looks at a database that another run holds: one that never lets go must
// not look as if nothing were left.
func (r *run) peek(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closingTime)
	defer cancel()
	table, err := r.target.Engine.Open(ctx, r.res.Database, false)
	if err != nil {
		return err
	}
	defer table.Close()
	cutoff := table.Facts().Now.Add(-r.policy.Grace)
	r.res.Cutoff, r.res.Grace = instant(cutoff), r.policy.Grace
	oldest, found, err := table.Oldest(ctx, table.Expired(cutoff))
	if err != nil {
		return err
	}
	if r.res.looked(nil); found != nil {
		r.res.OldestExpiration = instant(oldest)
		r.res.looked(r.res.OldestExpiration)
	}
	return nil
}

// settle finds out what became of the batches whose acknowledgement was lost: one
// whose rows are gone was committed.
func (r *run) settle(ctx context.Context) error {
	for ; len(r.unsure) > 0; r.unsure = r.unsure[1:] {
		j := r.unsure[0]
		var found Range
		err := r.patiently(ctx, func() (err error) {
			_, found, err = r.reader().oldest(ctx, j.rows)
			return err
		})
		switch {
		case err != nil:
			return err
		case found != nil: // undone
			r.cap.settle(0, -j.granted)
		case j.deleted > 0:
			r.count(j.deleted)
			r.cap.settle(0, j.deleted-j.granted)
		}
	}
	return nil
}

// count adds a committed batch.
func (r *run) count(rows int64) {
	r.res.DeletedRows += rows
	r.res.Batches++
}

// drain deletes until a look finds nothing left. Rows that others put in behind
// the sweep, already expired, are found by that look and swept in another lap.
func (r *run) drain(ctx context.Context) error {
	for fruitless := 0; ; {
		oldest, found, err := r.oldest(ctx)
		if err != nil {
			return err
		}
		if found == nil {
			r.res.looked(nil)
			return nil
		}
		r.res.LeftKnown = false // what is found here goes, or is looked for at the end
		if r.res.OldestExpiration == nil || oldest.Before(r.res.OldestExpiration.Time) {
			r.res.OldestExpiration = instant(oldest)
		}
		// Once can be another cleaner that was faster; twice cannot.
		if fruitless == 2 {
			return errors.New("rows have expired that DELETE does not remove: look for a trigger, a rule or a row-level security policy on the table")
		}
		before := r.res.DeletedRows
		r.left = []part{{rows: found}}
		if r.left, err = r.sweep(ctx, r.left); err != nil {
			return err
		}
		if fruitless++; r.res.DeletedRows > before {
			fruitless = 0
		}
	}
}

// lookAtLeftovers finds the oldest row that a stopped purge leaves behind, for
// the metric. Where time is too short for that, it is not known.
func (r *run) lookAtLeftovers(outer context.Context) {
	ctx, cancel := context.WithTimeout(outer, min(closingTime, r.policy.StopBefore/4))
	defer cancel()
	left := r.left
	if left == nil || r.res.StopReason == MaxRows {
		left = []part{{rows: r.expired}}
	}
	var oldest *Instant
	for _, p := range left {
		at, found, err := r.reader().oldest(ctx, p.rows)
		if (p.locked || r.shut) && (found != nil || err != nil) {
			r.find(lockedRows)
		}
		if err != nil {
			return
		}
		if found != nil && (oldest == nil || at.Before(oldest.Time)) {
			oldest = instant(at)
		}
	}
	if r.res.looked(oldest); oldest == nil && r.res.StopReason == MaxRows {
		r.end(Complete, Drained) // the cap was just enough
	}
}

// rowCap shares Policy.MaxRows among the databases of a run. Rows are granted
// before they are deleted; what a grant did not use goes back.
type rowCap struct {
	mu      sync.Mutex
	settled sync.Cond
	left    int64
	granted int64 // and not settled
}

func newRowCap(most int64) *rowCap {
	if most <= 0 {
		most = math.MaxInt64
	}
	c := &rowCap{left: most}
	c.settled.L = &c.mu
	return c
}

// take grants up to n rows. Where none is left it answers 0 at once, or with
// wait when nothing can come back from the grants of others any more.
func (c *rowCap) take(n int64, wait bool) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for wait && c.left == 0 && c.granted > 0 {
		c.settled.Wait()
	}
	n = max(0, min(n, c.left))
	c.left -= n
	c.granted += n
	return n
}

// settle ends a grant of which so many rows were used, or corrects how many were.
func (c *rowCap) settle(granted, used int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.granted -= granted
	c.left = max(0, c.left+granted-used)
	c.settled.Broadcast()
}
