package purge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// firstLookShare is the part of the time left that a look may take before
	// anything is deleted.
	firstLookShare = 8
	// youngest is how old the rows are that a sweep begins with where that look took
	// too long: the deleted rows of earlier runs, which make it long, are older.
	youngest = time.Hour
	// eldest is from where on rows need no windows of their own.
	eldest = 1 << 18 * time.Hour // 30 years
)

// errKept is for rows that DELETE leaves where they are.
var errKept = errors.New("rows have expired that DELETE does not remove: look for a trigger, a rule or a row-level security policy on the table")

// drain deletes what had expired at the cut-off. Only a look that finds nothing
// proves that nothing is left; rows inserted behind a sweep are found by the next.
func (t *turn) drain(ctx context.Context) error {
	windows, err := t.firstLook(ctx)
	stalled := 0
	for ; err == nil && windows != nil; windows, err = t.look(ctx) {
		// Once can be another cleaner that was faster; twice can't.
		if stalled == 2 {
			return t.kept(ctx)
		}
		before := t.backlog.rows
		if err := t.sweep(ctx, windows); err != nil {
			return t.refused(ctx, err)
		}
		if stalled++; t.backlog.rows > before {
			stalled = 0
		}
	}
	if err == nil && stalled > 0 {
		t.gone(ctx)
	}
	return err
}

// gone tells of rows that were found and not deleted, and are not found any more, where
// something acts on deletes: it may have put their expiration off. Else another cleaner
// was faster.
func (t *turn) gone(ctx context.Context) {
	if acts := t.whatActs(ctx); acts != "" {
		t.result.find(KeptRows.At(LevelWarning, "rows had expired, and a delete removed none of them; they do not count as expired any more"+acts))
	}
}

// kept returns errKept with what may keep the rows.
func (t *turn) kept(ctx context.Context) error {
	err := fmt.Errorf("%w%s", errKept, t.whatActs(ctx))
	t.result.find(KeptRows.Found(err.Error()))
	return err
}

// refused returns err, and where it is for refused rows, with what may refuse them.
func (t *turn) refused(ctx context.Context, err error) error {
	refused, ok := errors.AsType[refusedError](err)
	if !ok {
		return err
	}
	refused.mend = t.whatActs(ctx)
	t.backlog.refused = refused // which the finding is made of
	return refused
}

// firstLook looks for expired rows. A look that takes too long is no gate: all that
// may hold any is swept without it.
func (t *turn) firstLook(ctx context.Context) ([]Window, error) {
	deadline, limited := ctx.Deadline()
	if !limited {
		return t.look(ctx)
	}
	brief, cancel := context.WithTimeout(ctx, time.Until(deadline)/firstLookShare)
	defer cancel()
	found, err := t.look(brief)
	if errors.Is(err, ErrTimeout) || err != nil && brief.Err() != nil && ctx.Err() == nil {
		return t.youngestFirst(), nil
	}
	return found, err
}

// youngestFirst returns all that may be deleted. Where an index finds rows, those that
// expired last come first, each window twice as long as all before it.
func (t *turn) youngestFirst() (windows []Window) {
	if !t.conn.Facts().Indexed {
		return []Window{t.expired}
	}
	to := t.result.Cutoff.Time
	for long := youngest; long < eldest; long *= 2 {
		after := t.result.Cutoff.Add(-long)
		windows, to = append(windows, t.conn.Expired(after, to)), after
	}
	return append(windows, t.conn.Expired(time.Time{}, to))
}

// look looks for the oldest of all expired rows, and returns what is left to sweep from
// there; nil when none is left.
func (t *turn) look(ctx context.Context) ([]Window, error) {
	oldest, found, err := t.oldest(ctx, t.expired)
	if err != nil {
		return nil, err
	}
	if found == nil {
		t.result.looked(nil)
		return nil, nil
	}
	t.result.LeftKnown = false // what is found here goes, or is looked for at the end
	if t.result.OldestExpiration == nil || oldest.Before(t.result.OldestExpiration.Time) {
		t.result.OldestExpiration = instant(oldest)
	}
	return []Window{found}, nil
}

// sweep deletes the rows of windows batch by batch, with a worker for each connection.
// A large backlog gets more connections, once.
func (t *turn) sweep(ctx context.Context, windows []Window) error {
	t.run.pacer.Listen(ctx, t.conn)
	t.backlog.Begin(windows)
	var workers sync.WaitGroup
	begin := func(conn Conn) {
		workers.Go(func() { (&worker{turn: t, conn: conn}).work(ctx) })
	}
	begin(t.conn)
	for _, conn := range t.more {
		begin(conn)
	}
	if t.backlog.IsLarge() && !t.scaledOut {
		t.scaleOut(ctx, t.run.policy.Concurrency-1, begin, t.run.schedule.spare)
	}
	if t.prefetcher != nil {
		workers.Go(func() { t.backlog.Prefetch(ctx, t.prefetcher) })
	}
	workers.Wait()
	t.waiting.on("")
	return t.backlog.End()
}
