package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxClockSkew is how far the database's clock and ours may lie apart. A clock
// that runs ahead makes live tokens look expired; which of the two is wrong
// can't be known here, so nothing is deleted.
const MaxClockSkew = 5 * time.Minute

const (
	// finalLookTimeout bounds the look at what a stopped run leaves behind. It
	// comes out of Policy.StopBefore, of which it takes a quarter at most.
	finalLookTimeout = 2 * time.Second
	// openTimeout is how long a database that can be reached takes to open at most.
	// It has that time even where its share is less.
	openTimeout = 2 * time.Second
	// slowLook is from when on a look is worth a word although an index serves it.
	slowLook = time.Second
)

// A connection that is lost in the middle of a run is opened anew, first after
// minBackoff, then after twice that and so on, for reconnectTimeout: a server that
// restarts or fails over is back by then. One that is lost mostLosses times without a
// batch committed in between is given up: it may be this very work that ends it.
const (
	minBackoff       = 200 * time.Millisecond
	maxBackoff       = 10 * time.Second
	reconnectTimeout = 2 * time.Minute
	mostLosses       = 5
)

// turn is the work in one table of a database. It may take several turns: when its share of the
// time is over, or the connection was lost, the next one goes on.
type turn struct {
	run      *run
	database Database
	table    Table
	visit    *visit
	log      *slog.Logger
	result   DatabaseResult
	backlog  *backlog
	expired  Window // all that may be deleted; nil before the cut-off is known
	connections
	disconnection
	tableLocked bool // a look met a lock on the whole table, and none got through since
	holders     holders
	waiting     waiting
	done        bool // it wants no turn any more
}

// connections are those of one turn.
type connections struct {
	conn       Conn          // holds the database's lock
	more       []Conn        // that delete as well
	prefetcher Conn          // that cuts ahead, if there is one to spare
	scaledOut  bool          // there are as many as there can be
	opening    time.Duration // what the first took
}

// disconnection is for how long there has been no connection, and how often that was.
type disconnection struct {
	disconnectedAt time.Time // zero while there is one
	backoff        time.Duration
	losses         int // without a batch committed in between
	batches        int // committed until the last of them
}

func newTurn(r *run, d Database, table Table, v *visit) *turn {
	t := &turn{run: r, database: d, table: table, visit: v, log: r.target.Log.With("database", d.Name)}
	if len(r.target.Tables) > 1 {
		t.log = t.log.With("table", table.Name)
	}
	t.result = DatabaseResult{Database: d.Name, Engine: r.target.Name, Server: r.target.Server, Findings: r.findings()}
	t.backlog = &backlog{policy: r.policy, quota: r.quota, sizer: newSizer(r.policy), yields: r.pacer.Throttled, log: t.log, deleted: func(rows int64) {
		if r.target.Deleted != nil {
			r.target.Deleted(d.Name, rows)
		}
	}}
	t.backlog.changed.L = &t.backlog.mu
	return t
}

// serve gives the database a turn. work ends in time for the final look, which outer
// still allows. again tells that the database wants another turn.
func (t *turn) serve(outer, work context.Context) (again bool) {
	start := time.Now()
	defer func() { t.result.DurationMs += time.Since(start).Milliseconds() }()
	t.result.reached = true
	if work.Err() != nil && t.result.Status != "" { // there was a turn before
		return false
	}
	// A server out of reach is waited for as if several databases were at it already.
	e := t.connect(work, t.run.schedule.share(work, t.run.policy.Parallel))
	if e.opened {
		defer t.close(outer)
		t.perform(work, t.share(work), &e) // by now it may be known that there are fewer at once
	}
	e.canceled = errors.Is(outer.Err(), context.Canceled)
	t.result.reached = e.opened && !errors.Is(e.err, ErrLost) || isOfTable(e.err)
	v := conclude(e)
	again = t.apply(work, v)
	// A server that is silent would take what time there is left.
	silent := errors.Is(e.err, ErrLost) || len(t.backlog.unacknowledged) > 0
	if e.opened && !silent && t.result.Status != Complete && t.expired != nil && t.run.policy.Action == Purge {
		recoverPanic(outer, t.log, func() error { t.finalLook(outer); return nil }) //nolint:errcheck // logged; the status stands
	}
	if refused := t.backlog.refused; refused.rows > 0 {
		t.find(RefusedRows.Found(refused.Error()))
	}
	return again
}

// share is how long the turn may take; 0 is as long as there is.
func (t *turn) share(work context.Context) time.Duration {
	return t.visit.share(work)
}

// closed ends the turn in a database that is open to nobody.
func (t *turn) closed() {
	t.end(Skipped, SkippedReason)
	t.find(DatabaseClosed.Found(t.database.Closed))
}

// ending is what a turn came to.
type ending struct {
	err       error
	action    Action
	overrun   StopReason // what it means that the time is over
	matched   bool       // only a pattern matched the database
	opened    bool       // the database was reached and its table examined
	wasOpen   bool       // or was, in this turn or one before
	timeout   bool       // the time is over
	shareOver bool       // only that of its turn
	canceled  bool       // whoever called wants the run to end
	stale     bool       // whoever holds the lock may be a session of this run that was lost
}

// verdict is what follows from an ending.
type verdict struct {
	status    Status
	reason    StopReason
	err       error // of a failure, or why it is skipped
	again     bool  // the database wants another turn
	reconnect bool  // it gets one, after a while, as long as there is patience
	inspect   bool  // another run holds it; what that leaves is to be seen
}

// mayPass tells whether a later try to connect may succeed: the connection was lost, or
// the server starts, wakes, fails over or has none to spare.
func (e ending) mayPass() bool {
	unfit, notPurgeable := errors.AsType[NotPurgeable](e.err)
	switch {
	case errors.Is(e.err, ErrNotYet), errors.Is(e.err, ErrNoSlot):
		return true
	case notPurgeable: // after a fail-over the old writer is a reader
		return unfit.Kind.Code == ReaderEndpoint.Code
	case errors.Is(e.err, ErrChanged):
		return true
	default:
		return e.wasOpen && errors.Is(e.err, ErrLost)
	}
}

// nothingToPurge tells whether the database has nothing that this run is for, so that
// it may be left out where only a pattern matched it.
func (e ending) nothingToPurge() bool {
	unfit, ok := errors.AsType[NotPurgeable](e.err)
	return ok && unfit.Kind.Code == NoTable.Code && e.matched && !e.wasOpen
}

var doneReason = map[Action]StopReason{Purge: Drained, DryRun: DryRunDone, Check: CheckDone}

// conclude judges how a turn ended. Nothing else does.
func conclude(e ending) verdict {
	switch {
	case e.err == nil:
		return verdict{status: Complete, reason: doneReason[e.action]}
	case e.nothingToPurge():
		return verdict{status: Skipped, reason: SkippedReason, err: e.err}
	case errors.Is(e.err, ErrAlreadyRunning):
		return verdict{status: Partial, reason: AlreadyRunning, inspect: true, err: e.err, reconnect: e.stale}
	case errors.Is(e.err, errMaxRows):
		return verdict{status: Partial, reason: MaxRows}
	case e.canceled:
		return verdict{status: Partial, reason: Canceled}
	case e.timeout:
		return verdict{status: Partial, reason: e.overrun, again: e.shareOver}
	case errors.Is(e.err, ErrNoSlot): // no fault of the database's: it waits for its turn
		return verdict{status: Partial, reason: e.overrun, err: e.err, reconnect: true}
	default:
		return verdict{status: Failed, reason: Errored, err: e.err, again: e.shareOver, reconnect: e.mayPass()}
	}
}

// apply does what follows from a verdict, and tells whether the database gets another
// turn.
func (t *turn) apply(work context.Context, v verdict) (again bool) {
	t.end(v.status, v.reason)
	unfit, notPurgeable := errors.AsType[NotPurgeable](v.err)
	if notPurgeable && v.status == Failed {
		unfit = t.excludable(unfit)
		v.err = unfit
	}
	switch {
	case v.status == Failed:
		if t.result.Error = v.err.Error(); notPurgeable {
			t.find(unfit.Kind.At(LevelError, unfit.Message))
		}
	case notPurgeable:
		t.find(unfit.Kind.At(LevelInfo, unfit.Message))
	case errors.Is(v.err, ErrNoSlot):
		t.find(NoSlot.Found(v.err.Error()))
	case v.status == Partial && t.tableLocked && t.run.policy.Action != Purge: // a purge looks once more
		t.find(t.stayedLocked())
	}
	if v.again || v.reconnect && t.backoffAfterDisconnect(work, v.err) {
		return true
	}
	if v.inspect {
		recoverPanic(work, t.log, func() error { return t.inspectHeld(work) }) //nolint:errcheck // logged; the status stands
	}
	return false
}

// excludable adds to what a matched database fails for how to leave it out.
func (t *turn) excludable(unfit NotPurgeable) NotPurgeable {
	if t.database.Matched && !unfit.Server {
		unfit.Message = strings.TrimSuffix(unfit.Message, ";") + fmt.Sprintf("; or exclude the database: add !%s to DATABASES", t.database.Name)
	}
	return unfit
}

// connect opens the connection that holds the database's lock.
func (t *turn) connect(work context.Context, share time.Duration) ending {
	start := time.Now()
	e := ending{action: t.run.policy.Action, overrun: t.run.overrun, matched: t.database.Matched || len(t.visit.turns) > 1, wasOpen: t.result.Cutoff != nil}
	if e.err = work.Err(); e.err != nil {
		e.timeout = true
		return e
	}
	patience, cancel := withOptionalTimeout(work, max(share, openTimeout), share > 0)
	defer cancel()
	e.err = recoverPanic(patience, t.log, func() (err error) {
		t.conn, err = t.visit.take(patience, t.table)
		if t.conn == nil && err == nil {
			t.conn, err = t.enter(patience, t.run.policy.Action == Purge)
		}
		return err
	})
	t.opening = time.Since(start)
	if e.opened = e.err == nil; e.opened {
		e.wasOpen = true
		t.result.Findings = t.run.findings() // of this turn
		return e
	}
	// A database that was open before is there, unless it was lost, and one that is
	// there opens soon. Any other may be out of reach, which must not look like too
	// little time.
	there := t.opening < openTimeout
	if e.wasOpen {
		there = t.disconnectedAt.IsZero()
	}
	cut := patience.Err() != nil
	e.timeout, e.shareOver = cut && there, cut && work.Err() == nil
	if cut && t.disconnectedAt.IsZero() { // the server may still be about to let it in
		t.disconnectedAt = time.Now()
	}
	e.stale = t.isOwnStaleSession()
	return e
}

// perform does what the policy says, on the connection that there is now.
func (t *turn) perform(work context.Context, share time.Duration, e *ending) {
	t.disconnectedAt = time.Time{} // the back-off is forgiven by progress alone
	ctx, cancel := withOptionalTimeout(work, share, share > 0)
	defer cancel()
	e.err = recoverPanic(ctx, t.log, func() error { return t.work(ctx) })
	e.timeout = errors.Is(e.err, ErrTimeout) || errors.Is(e.err, context.DeadlineExceeded) || ctx.Err() != nil
	e.shareOver = e.timeout && share > 0 && work.Err() == nil // the server gives up before the turn ends
	t.result.DeletedRows, t.result.Batches = t.backlog.rows, t.backlog.batches
	t.result.ThrottledMs = (t.backlog.throttled / time.Duration(1+len(t.more))).Milliseconds()
	if t.result.ThrottledMs > 0 {
		t.find(Throttled.Found(fmt.Sprintf("%s, and this run made way for %s", ThrottleReason, time.Duration(t.result.ThrottledMs)*time.Millisecond)))
	}
	if rows := t.backlog.Uncertain(); rows > 0 {
		t.find(CountUncertain.Found(fmt.Sprintf("the connection was lost while batches were on their way, and the server could not say what became of all of them: the number of deleted rows may be off by up to %s", Grouped(rows))))
	}
}

// work does the action and returns nil when it was done to the end.
func (t *turn) work(ctx context.Context) error {
	facts := t.conn.Facts()
	for _, f := range facts.Findings {
		t.find(f)
	}
	if t.result.Cutoff == nil { // else this is another turn of the same run
		t.cutAt(facts.Clock)
	}
	t.expired = t.conn.Expired(time.Time{}, t.result.Cutoff.Time)
	if t.run.policy.Action == Check {
		return t.check(ctx, facts)
	}
	if clocks, ok := skew(facts.Now); !ok {
		t.find(ClockSkew.Found(clocks))
		return fmt.Errorf("%s: %s", ClockSkew.Code, clocks)
	}
	if t.run.policy.Action == DryRun {
		return t.dryRun(ctx)
	}
	if err := t.backlog.Acknowledge(ctx, t.conn); err != nil {
		return err
	}
	return t.drain(ctx)
}

// cutAt fixes the cut-off by the clock of the table.
func (t *turn) cutAt(clock time.Time) {
	table, grace := t.table, t.run.policy.Grace
	t.result.Cutoff, t.result.Grace = instant(table.Cutoff(clock, grace)), grace+table.Grace
}

// dryRun counts what a purge would delete.
func (t *turn) dryRun(ctx context.Context) error {
	oldest, found, err := t.oldest(ctx, t.expired)
	if err != nil {
		return err
	}
	if t.result.looked(nil); found == nil {
		t.result.ExpiredRows = new(int64)
		return nil
	}
	t.result.OldestExpiration = instant(oldest)
	t.result.looked(t.result.OldestExpiration)
	rows, err := t.count(ctx, found)
	if err != nil {
		return err
	}
	goes := t.run.quota.Reserve(rows, false)
	t.run.quota.Release(goes, goes)
	if t.result.ExpiredRows = &goes; goes < rows {
		t.find(MaxRowsReached.Found(fmt.Sprintf("%s rows have expired; MAX_ROWS lets one run delete %s of them here", Grouped(rows), Grouped(goes))))
	}
	return nil
}

// oldest looks for the oldest row of w, and waits while the table is locked.
func (t *turn) oldest(ctx context.Context, w Window) (at time.Time, found Window, err error) {
	var took time.Duration
	err = t.unlocked(ctx, func() (err error) {
		start := time.Now()
		if sharer, ok := t.conn.(Sharer); ok && !t.run.pacer.Throttled() {
			at, found, err = sharer.OldestWith(ctx, t.others(), w, t.backlog.trail)
		} else {
			at, found, err = t.conn.Oldest(ctx, w, t.backlog.trail)
		}
		took = time.Since(start)
		return err
	})
	if took > slowLook && !errors.Is(err, ErrLost) {
		t.whySlow(ctx)
	}
	return at, found, err
}

// whySlow finds what made a look take long, where the connection can tell.
func (t *turn) whySlow(ctx context.Context) {
	conn, ok := t.conn.(SlowLook)
	if !ok || !t.conn.Facts().Indexed { // or it reads the whole table, which is known
		return
	}
	recoverPanic(ctx, t.log, func() error { //nolint:errcheck // logged; it is but a hint
		findings, err := conn.WhySlow(ctx)
		for _, f := range findings {
			t.find(f)
		}
		return err
	})
}

// count counts the rows of w, and waits while the table is locked.
func (t *turn) count(ctx context.Context, w Window) (rows int64, err error) {
	err = t.unlocked(ctx, func() (err error) {
		rows, err = t.conn.Count(ctx, w)
		return err
	})
	return rows, err
}

// unlocked repeats do while the table as a whole is locked, and remembers whether it
// stayed so.
func (t *turn) unlocked(ctx context.Context, do func() error) error {
	met := error(nil)
	err := retryWhileLocked(ctx, func() error {
		if met = do(); errors.Is(met, ErrLocked) {
			t.waits(t.lockedBy(ctx, t.conn, "the table is"))
		}
		return met
	})
	t.waits("")
	switch {
	case errors.Is(met, ErrLocked):
		t.tableLocked = true
	case met == nil:
		t.tableLocked = false
	}
	return err
}

// retryWhileLocked repeats do while it meets a lock.
func retryWhileLocked(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !errors.Is(err, ErrLocked) {
			return err
		}
		if sleep(ctx, lockedRest); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// inspectHeld looks at a database that another run holds: one that never lets go must
// not look as if nothing were left.
func (t *turn) inspectHeld(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, finalLookTimeout)
	defer cancel()
	conn, err := t.open(ctx, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	t.cutAt(conn.Facts().Clock)
	oldest, found, err := conn.Oldest(ctx, conn.Expired(time.Time{}, t.result.Cutoff.Time), Trail{})
	if err != nil {
		return err
	}
	if t.result.looked(nil); found != nil {
		t.result.OldestExpiration = instant(oldest)
		t.result.looked(t.result.OldestExpiration)
	}
	return nil
}

// finalLook finds the oldest row that a stopped purge leaves behind, for the metric.
// Where time is too short for that, it is not known.
func (t *turn) finalLook(outer context.Context) {
	ctx, cancel := context.WithTimeout(outer, min(finalLookTimeout, t.run.policy.StopBefore/4))
	defer cancel()
	if refused := &t.backlog.refused; refused.rows > 0 && refused.mend == "" {
		refused.mend = t.whatActs(ctx)
	}
	left := t.backlog.Left()
	if left == nil || t.result.StopReason == MaxRows {
		left = []part{{window: t.expired}}
	}
	var oldest *Instant
	for _, p := range left {
		at, found, err := t.oldest(ctx, p.window)
		if (p.locked || t.tableLocked) && (found != nil || err != nil) {
			t.find(t.stayedLocked())
		}
		if err != nil {
			return
		}
		if found != nil && (oldest == nil || at.Before(oldest.Time)) {
			oldest = instant(at)
		}
	}
	if t.result.looked(oldest); oldest == nil && t.result.StopReason == MaxRows {
		t.end(Complete, Drained) // the cap was just enough
	}
}

// isOwnStaleSession tells whether the run that holds the database may be a session of
// ours that the server has not given up yet: one that was lost, or cut while it opened.
func (t *turn) isOwnStaleSession() bool {
	return !t.disconnectedAt.IsZero() && (t.result.Cutoff != nil || time.Since(t.disconnectedAt) < maxBackoff)
}

// backoffAfterDisconnect rests before another try to connect, and tells whether there
// is patience for one.
func (t *turn) backoffAfterDisconnect(work context.Context, err error) bool {
	if t.backlog.batches > t.batches { // there was progress
		t.batches, t.losses, t.backoff = t.backlog.batches, 0, 0
	}
	if t.disconnectedAt.IsZero() {
		t.disconnectedAt = time.Now()
		t.losses++
	}
	if t.losses > mostLosses || !t.patient(err) {
		return false
	}
	t.backoff = min(max(2*t.backoff, minBackoff), maxBackoff)
	rest := t.backoff/2 + rand.N(t.backoff/2) // several that ask at once would be in each other's way again
	t.log.WarnContext(work, "no connection", "error", err.Error(), "againInMs", rest.Milliseconds())
	t.waits(inBrief(err))
	sleep(work, rest)
	t.waits("")
	return work.Err() == nil
}

// inBrief says why there is no connection, in as few words as a line has room for.
func inBrief(err error) string {
	for _, known := range []error{ErrNotYet, ErrNoSlot, ErrAlreadyRunning, ErrLost} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

// patient tells whether there is time for another try to connect after err.
func (t *turn) patient(err error) bool {
	switch wasOpen := t.result.Cutoff != nil; {
	case errors.Is(err, ErrNoSlot): // as long as there is time at all
		return true
	case wasOpen || errors.Is(err, ErrAlreadyRunning):
		return time.Since(t.disconnectedAt) < reconnectTimeout
	default: // once for all databases
		return time.Since(t.run.began) < t.run.policy.ConnectTimeout
	}
}

// open opens a connection to the table.
func (t *turn) open(ctx context.Context, lock bool) (Conn, error) {
	return t.run.target.Engine.Open(ctx, t.database.Name, t.table, lock)
}

// enter opens the connection that a database is served by, unless the server has none to
// spare.
func (t *turn) enter(ctx context.Context, lock bool) (Conn, error) {
	conn, err := t.open(ctx, lock)
	if err != nil {
		t.run.slots.failed(err)
		return nil, err
	}
	if err := t.run.slots.enter(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// addConns gives a large backlog as many connections as may delete at once, and one
// to cut ahead where fewer databases want a turn than may have one. Those that delete
// begin as soon as they are there. Where the server has none to spare, fewer do it all.
func (t *turn) addConns(ctx context.Context, begin func(Conn)) {
	t.scaledOut = true
	for len(t.more) < t.run.policy.Concurrency-1 {
		conn := t.tryAcquire(ctx)
		if conn == nil {
			return
		}
		t.more = append(t.more, conn)
		begin(conn)
	}
	if t.run.schedule.spare() {
		t.prefetcher = t.tryAcquire(ctx)
	}
}

// tryAcquire opens one connection more; nil where there is none to spare.
func (t *turn) tryAcquire(ctx context.Context) (conn Conn) {
	if !t.run.slots.TryAcquire(1) {
		return nil
	}
	err := recoverPanic(ctx, t.log, func() (err error) {
		if conn, err = t.open(ctx, false); err == nil {
			err = t.run.slots.enter(ctx, conn)
		}
		return err
	})
	if err != nil {
		t.run.slots.Release(1)
		if conn != nil {
			conn.Close()
		}
		if ctx.Err() == nil {
			t.log.WarnContext(ctx, "no further connection", "error", err.Error())
		}
		return nil
	}
	return conn
}

// others are all connections but the one that holds the lock.
func (t *turn) others() []Conn {
	others := slices.Clone(t.more)
	if t.prefetcher != nil {
		others = append(others, t.prefetcher)
	}
	return others
}

// close ends all connections at once: each may take a moment.
func (t *turn) close(ctx context.Context) {
	all := t.others()
	if t.visit.wanting > 1 && t.result.reached { // the next table goes on with it
		t.visit.conn = t.conn
	} else {
		all = append(all, t.conn)
	}
	t.run.slots.leave(len(all))
	var closing sync.WaitGroup
	for _, conn := range all {
		closing.Go(func() {
			recoverPanic(ctx, t.log, func() error { conn.Close(); return nil }) //nolint:errcheck // logged; every batch is committed
		})
	}
	closing.Wait()
	t.run.slots.Release(int64(len(t.others()))) // that of conn is the visit's
	t.connections = connections{}
}

// waiting is what a turn waits for; "" is nothing.
type waiting struct {
	mu  sync.Mutex
	why string
}

// waits tells of a wait that begins, and with "" of its end.
func (t *turn) waits(why string) {
	t.waiting.mu.Lock()
	defer t.waiting.mu.Unlock()
	if t.waiting.why == why {
		return
	}
	t.waiting.why = why
	if t.run.target.Waiting != nil {
		t.run.target.Waiting(t.database.Name, why)
	}
}

// recoverPanic makes a panic in do an error: of this database, and of no other.
func recoverPanic(ctx context.Context, log *slog.Logger, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil { // its value may quote anything, so only its type is told
			log.ErrorContext(ctx, "panic", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = fmt.Errorf("a bug: panic of type %T, its stack is in the log", p)
		}
	}()
	return do()
}

// withOptionalTimeout limits ctx, if there is a limit.
func withOptionalTimeout(ctx context.Context, d time.Duration, limited bool) (context.Context, context.CancelFunc) {
	if limited {
		return context.WithTimeout(ctx, d)
	}
	return ctx, func() {}
}

func (t *turn) end(status Status, reason StopReason) {
	t.result.Status, t.result.StopReason, t.result.Error = status, reason, ""
}

func (t *turn) find(f Finding) {
	for _, have := range t.result.Findings {
		if have.Code == f.Code {
			return
		}
	}
	t.result.Findings = append(t.result.Findings, f)
	slices.SortStableFunc(t.result.Findings, bySeverity)
}
