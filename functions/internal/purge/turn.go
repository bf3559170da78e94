package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// MaxClockSkew is how far the database's clock and ours may lie apart. A clock
// that runs ahead makes live tokens look expired; which of the two is wrong
// can't be known here, so nothing is deleted.
const MaxClockSkew = 5 * time.Minute

// openTimeout is how long a database that can be reached takes to open at most. It has
// that time even where its share is less.
const openTimeout = 2 * time.Second

// turn is the work in one table of a database. It may take several calls of serve: when
// its share of the time is over, or the connection was lost, the next one goes on.
type turn struct {
	run     *run
	visit   *visit
	table   Table
	log     *slog.Logger
	result  DatabaseResult
	backlog *backlog
	expired Window // all that may be deleted; nil before the cut-off is known
	connections
	locks   locks
	waiting waiting
}

func newTurn(v *visit, table Table) *turn {
	r, name := v.run, v.database.Name
	t := &turn{run: r, visit: v, table: table, log: r.target.Log.With("database", name)}
	if len(r.target.Tables) > 1 {
		t.log = t.log.With("table", table.Name)
	}
	t.result = DatabaseResult{Database: name, Engine: r.target.Name, Server: r.target.Server, Findings: r.findings()}
	t.backlog = &backlog{quota: r.quota, sizer: newSizer(r.policy), yields: r.pacer.Throttled, log: t.log, deleted: func(rows int64) {
		if r.target.Deleted != nil {
			r.target.Deleted(name, rows)
		}
	}}
	t.backlog.waits = func(ctx context.Context, conn Conn, err error) {
		t.waiting.on(t.locks.by(ctx, conn, t.log, "the table is", err))
	}
	t.backlog.changed.L = &t.backlog.mu
	t.connections = connections{slots: r.slots, log: t.log, open: func(ctx context.Context, lock bool) (Conn, error) {
		return r.target.Engine.Open(ctx, name, table, lock)
	}}
	t.waiting.tell = func(why string) {
		if r.target.Waiting != nil {
			r.target.Waiting(name, why)
		}
	}
	return t
}

// serve gives the table a turn. work ends in time for the final look, which outer still
// allows. again tells that it wants another one.
func (t *turn) serve(outer, work context.Context) (again bool) {
	start := time.Now()
	defer func() { t.result.DurationMs += time.Since(start).Milliseconds() }()
	t.result.reached = true
	if work.Err() != nil && t.result.Status != "" { // there was a turn before
		return false
	}
	// A server out of reach is waited for as if several databases were at it already.
	e := t.connect(work, t.run.schedule.share(work, t.run.policy.Parallel))
	var share time.Duration
	if e.opened {
		defer t.leave(outer)
		share = t.visit.share(work) // by now it may be known that there are fewer at once
		t.perform(work, share, &e)
	}
	e.canceled = errors.Is(outer.Err(), context.Canceled)
	t.result.reached = e.opened && !errors.Is(e.err, ErrLost) || isOfTable(e.err)
	v := conclude(e)
	again = t.apply(work, v)
	if e.opened && t.result.Status != Complete && t.expired != nil && t.run.policy.Action == Purge {
		t.leftovers(outer, e.err, again, share)
	}
	if refused := t.backlog.refused; refused.rows > 0 {
		t.result.find(RefusedRows.Found(refused.Error()))
	}
	return again
}

// leftovers looks for what a stopped purge leaves behind.
func (t *turn) leftovers(outer context.Context, err error, again bool, share time.Duration) {
	// A server that is silent would take what time there is left.
	if errors.Is(err, ErrLost) || len(t.backlog.asking) > 0 {
		t.findLocked(false, t.backlog.Left())
		return
	}
	patience := min(finalLookTimeout, t.run.policy.StopBefore/4)
	if again && share > 0 { // it comes out of the time of others
		patience = min(patience, share/4)
	}
	recoverPanic(outer, t.log, func() error { t.finalLook(outer, patience); return nil }) //nolint:errcheck // logged; the status stands
}

// leave ends all connections, but the first where the next table goes on with it.
func (t *turn) leave(ctx context.Context) {
	if t.visit.wanting > 1 && t.result.reached {
		t.visit.conn, t.conn = t.conn, nil
	}
	t.close(ctx)
}

// closed ends the turn in a database that is open to nobody.
func (t *turn) closed() {
	t.result.end(Skipped, SkippedReason)
	t.result.find(DatabaseClosed.Found(t.visit.database.Closed))
}

// apply does what follows from a verdict, and tells whether the table gets another turn.
func (t *turn) apply(work context.Context, v verdict) (again bool) {
	t.result.end(v.status, v.reason)
	cause := v.err
	unfit, notPurgeable := errors.AsType[NotPurgeable](v.err)
	if notPurgeable && v.status == Failed {
		unfit = t.excludable(unfit)
		v.err = unfit
	}
	switch {
	case v.status == Failed:
		if t.result.Error = v.err.Error(); notPurgeable {
			t.result.find(unfit.Kind.At(LevelError, unfit.Message))
		}
	case notPurgeable:
		t.result.find(unfit.Kind.At(LevelInfo, unfit.Message))
	case v.err != nil:
		t.findWait(v.err)
	case v.status == Partial && t.locks.table && t.run.policy.Action != Purge: // a purge looks once more
		t.result.find(t.locks.stayed())
	}
	if v.again || v.reconnect && t.backoffAfterDisconnect(work, cause) {
		return true
	}
	if v.inspect {
		recoverPanic(work, t.log, func() error { return t.inspectHeld(work) }) //nolint:errcheck // logged; the status stands
	}
	return false
}

// findWait tells what the turn waited for before the database was open.
func (t *turn) findWait(err error) {
	for _, wait := range []struct {
		err  error
		kind Kind
	}{{ErrNoSlot, NoSlot}, {ErrBusy, ShortOfMemory}, {ErrLocked, LockedRows}} {
		if errors.Is(err, wait.err) {
			t.result.find(wait.kind.Found(err.Error()))
			return
		}
	}
}

// excludable adds to what a matched database fails for how to leave it out.
func (t *turn) excludable(unfit NotPurgeable) NotPurgeable {
	if t.visit.database.Matched && !unfit.Server {
		unfit.Message = strings.TrimSuffix(unfit.Message, ";") + fmt.Sprintf("; or exclude the database: add !%s to DATABASES", t.visit.database.Name)
	}
	return unfit
}

// connect opens the connection that holds the database's lock.
func (t *turn) connect(work context.Context, share time.Duration) ending {
	start := time.Now()
	e := ending{action: t.run.policy.Action, overrun: t.run.overrun, optional: t.visit.optional() && t.result.Cutoff == nil, wasOpen: t.visit.wasOpen()}
	if e.err = work.Err(); e.err != nil {
		e.timeout = true
		return e
	}
	patience, cancel := withOptionalTimeout(work, max(share, openTimeout), share > 0)
	defer cancel()
	e.err = recoverPanic(patience, t.log, func() (err error) {
		t.conn, err = t.visit.take(patience, t.table)
		if t.conn == nil && err == nil {
			t.conn, err = t.openFirst(patience, t.run.policy.Action == Purge)
		}
		return err
	})
	t.opening = time.Since(start)
	if e.opened = e.err == nil; e.opened {
		e.wasOpen = true
		t.run.served.Store(true)
		t.run.reached.Store(true)
		t.result.Findings = t.run.findings() // of this turn
		return e
	}
	// A database that was open before is there, unless it was lost, and one that is
	// there opens soon. Any other may be out of reach, which must not look like too
	// little time.
	there := t.opening < openTimeout
	if e.wasOpen {
		there = t.visit.disconnectedAt.IsZero()
	}
	cut := patience.Err() != nil
	e.timeout, e.shareOver = cut && there, cut && work.Err() == nil
	if cut && t.visit.disconnectedAt.IsZero() { // the server may still be about to let it in
		t.visit.disconnectedAt = time.Now()
	}
	if errors.Is(e.err, ErrNotYet) {
		t.run.reached.Store(true)
	}
	e.reached, e.stale = t.run.reached.Load(), t.visit.isOwnStaleSession()
	return e
}

// backoffAfterDisconnect rests before another try to connect, and tells whether there
// is patience for one.
func (t *turn) backoffAfterDisconnect(work context.Context, err error) bool {
	if t.visit.lostTooOften(t.visit.batches()) || !t.patient(err) {
		return false
	}
	rest := t.visit.rest()
	t.log.WarnContext(work, "no connection", "error", err.Error(), "againInMs", rest.Milliseconds())
	t.waiting.on(inBrief(err))
	sleep(work, rest)
	t.waiting.on("")
	return work.Err() == nil
}

// inBrief says why there is no connection, in as few words as a line has room for.
func inBrief(err error) string {
	for _, known := range []error{ErrBusy, ErrLocked, ErrNotYet, ErrNoSlot, ErrAlreadyRunning, ErrLost} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

// patient tells whether there is time for another try to connect after err.
func (t *turn) patient(err error) bool {
	switch {
	case errors.Is(err, ErrNoSlot), errors.Is(err, ErrLocked): // as long as there is time at all
		return true
	case t.visit.wasOpen() || errors.Is(err, ErrAlreadyRunning):
		return time.Since(t.visit.disconnectedAt) < reconnectTimeout
	case t.run.served.Load() && errors.Is(err, ErrNotYet):
		return time.Since(t.visit.disconnectedAt) < t.run.policy.ConnectTimeout
	case t.run.served.Load() && errors.Is(err, ErrLost):
		return time.Since(t.visit.disconnectedAt) < reconnectTimeout
	default: // once for all databases
		return time.Since(t.run.began) < t.run.policy.ConnectTimeout
	}
}

// perform does what the policy says, on the connection that there is now.
func (t *turn) perform(work context.Context, share time.Duration, e *ending) {
	t.visit.disconnectedAt = time.Time{} // the back-off is forgiven by progress alone
	ctx, cancel := withOptionalTimeout(work, share, share > 0)
	defer cancel()
	e.err = recoverPanic(ctx, t.log, func() error { return t.work(ctx) })
	e.timeout = errors.Is(e.err, ErrTimeout) || errors.Is(e.err, context.DeadlineExceeded) || isOver(ctx)
	e.shareOver = e.timeout && share > 0 && !isOver(work) // the server gives up before the turn ends
	t.result.DeletedRows, t.result.Batches = t.backlog.rows, t.backlog.batches
	t.result.ThrottledMs = (t.backlog.throttled / time.Duration(1+len(t.more))).Milliseconds()
	if t.result.ThrottledMs > 0 {
		t.result.find(Throttled.Found(fmt.Sprintf("%s, and this run made way for %s", ThrottleReason, time.Duration(t.result.ThrottledMs)*time.Millisecond)))
	}
	if rows := t.backlog.Uncertain(); rows > 0 {
		t.result.find(CountUncertain.Found(fmt.Sprintf("the connection was lost while batches were on their way, and the server could not say what became of all of them: the number of deleted rows may be off by up to %s", Grouped(rows))))
	}
}

// work does the action and returns nil when it was done to the end.
func (t *turn) work(ctx context.Context) error {
	facts := t.conn.Facts()
	for _, f := range facts.Findings {
		t.result.find(f)
	}
	if t.result.Cutoff == nil { // else this is another turn of the same run
		t.fixCutoff(facts)
	}
	t.expired = t.conn.Expired(time.Time{}, t.result.Cutoff.Time)
	if t.run.policy.Action == Check {
		return t.check(ctx, facts)
	}
	if clocks, ok := skew(facts.Now); !ok {
		t.result.find(ClockSkew.Found(clocks))
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

// fixCutoff fixes the cut-off by the clock of the table.
func (t *turn) fixCutoff(facts Facts) {
	table, grace := t.table, t.run.policy.Grace
	t.result.Cutoff, t.result.Grace = instant(table.Cutoff(facts.Clock, grace)), grace+table.Grace
	t.result.Local = facts.Local
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
		t.result.find(MaxRowsReached.Found(fmt.Sprintf("%s rows have expired; MAX_ROWS lets one run delete %s of them here", Grouped(rows), Grouped(goes))))
	}
	return nil
}

// waiting is what a turn waits for; "" is nothing.
type waiting struct {
	tell func(why string)

	mu  sync.Mutex
	why string
}

// on tells of a wait that begins, and with "" of its end.
func (w *waiting) on(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why != why {
		w.why = why
		w.tell(why)
	}
}
