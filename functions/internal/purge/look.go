package purge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// finalLookTimeout bounds the look at what a stopped run leaves behind. It
	// comes out of Policy.StopBefore, of which it takes a quarter at most.
	finalLookTimeout = 2 * time.Second
	// slowLook is from when on a look is worth a word although an index serves it.
	slowLook = time.Second
)

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
	conn, ok := t.conn.(LookExplainer)
	if !ok || !t.conn.Facts().Indexed { // or it reads the whole table, which is known
		return
	}
	recoverPanic(ctx, t.log, func() error { //nolint:errcheck // logged; it is but a hint
		findings, err := conn.WhySlow(ctx)
		for _, f := range findings {
			t.result.find(f)
		}
		return err
	})
}

// whatActs returns the end of a sentence about rows that stay: the statements that end
// what acts on deletes, where the connection can tell.
func (t *turn) whatActs(ctx context.Context) (end string) {
	conn, ok := t.conn.(DeleteExplainer)
	if !ok {
		return ""
	}
	recoverPanic(ctx, t.log, func() error { //nolint:errcheck // logged; it is but a hint
		statements, err := conn.WhatActs(ctx)
		if statements != "" {
			end = "; this acts on deletes, and so it ends: " + statements
		}
		return err
	})
	return end
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
	err := retryWhileLocked(ctx, func() error {
		err := do()
		switch {
		case errors.Is(err, ErrLocked): // whatever ends the next try
			t.locks.table = true
			t.waiting.on(t.locks.by(ctx, t.conn, t.log, "the table is", err))
		case err == nil:
			t.locks.table = false
		}
		return err
	})
	t.waiting.on("")
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
	t.fixCutoff(conn.Facts())
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

// slowRows says that rows take long, and what ends that.
func (t *turn) slowRows(ctx context.Context) Finding {
	return SlowRows.Found(fmt.Sprintf("rows take so long to delete that fewer than %d of them are a batch%s", slowRows, t.whatActs(ctx)))
}

// finalLook finds the oldest row that a stopped purge leaves behind, for the metric.
// Where time is too short for that, it is not known.
func (t *turn) finalLook(outer context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(outer, patience)
	defer cancel()
	if refused := &t.backlog.refused; refused.rows > 0 && refused.mend == "" {
		refused.mend = t.whatActs(ctx)
	}
	if t.backlog.Slow() {
		t.result.find(t.slowRows(ctx))
	}
	left := t.backlog.Left()
	if left == nil || t.result.StopReason == MaxRows {
		left = []part{{window: t.expired}}
	}
	oldest, err := t.oldestOf(ctx, left)
	if err != nil {
		return
	}
	if t.result.looked(oldest); oldest == nil && t.result.StopReason == MaxRows {
		t.result.end(Complete, Drained) // the cap was just enough
	}
}

// oldestOf looks for the oldest row of all parts; nil is none.
func (t *turn) oldestOf(ctx context.Context, parts []part) (oldest *Instant, err error) {
	table := t.locks.table // though this look may get through
	for i, p := range parts {
		at, found, err := t.oldest(ctx, p.window)
		if err != nil {
			t.findLocked(table, parts[i:])
			return nil, err
		}
		if found != nil {
			t.findLocked(table, parts[i:i+1])
		}
		if found != nil && (oldest == nil || at.Before(oldest.Time)) {
			oldest = instant(at)
		}
	}
	return oldest, nil
}

// findLocked tells where one of the parts that are left was locked, or the table.
func (t *turn) findLocked(table bool, parts []part) {
	if table || t.locks.table || slices.ContainsFunc(parts, func(p part) bool { return p.locked }) {
		t.result.find(t.locks.stayed())
	}
}
