package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// turn is the work in one table of a database. It may take several turns: when its share of the
// time is over, or the connection was lost, the next one goes on.
type turn struct {
	run     *run
	visit   *visit
	table   Table
	log     *slog.Logger
	result  DatabaseResult
	backlog *backlog
	expired Window // all that may be deleted; nil before the cut-off is known
	connections
	disconnection
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
	t.backlog = &backlog{policy: r.policy, quota: r.quota, sizer: newSizer(r.policy), yields: r.pacer.Throttled, log: t.log, deleted: func(rows int64) {
		if r.target.Deleted != nil {
			r.target.Deleted(name, rows)
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
	t.find(DatabaseClosed.Found(t.visit.database.Closed))
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
	case v.status == Partial && t.locks.table && t.run.policy.Action != Purge: // a purge looks once more
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
	if t.visit.database.Matched && !unfit.Server {
		unfit.Message = strings.TrimSuffix(unfit.Message, ";") + fmt.Sprintf("; or exclude the database: add !%s to DATABASES", t.visit.database.Name)
	}
	return unfit
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
		t.run.target.Waiting(t.visit.database.Name, why)
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
