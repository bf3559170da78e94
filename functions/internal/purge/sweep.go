package purge

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	// A batch that met a lock is tried again in pieces of this part of its
	// size, so that four tries isolate one locked row among 5,000.
	lockedSplit = 10
	// After a lock error the loop rests up to this long: a deadlock is reported
	// at once, and two sessions that step back in step meet again.
	lockedRest = 200 * time.Millisecond
)

// part is a stretch of the table still to be swept.
type part struct {
	rows   Range
	batch  int  // most rows a statement deletes here
	locked bool // others held a row of it
}

// sweep deletes the rows of todo batch by batch. It answers the parts that are
// still to do: none, unless there is an error.
func (r *run) sweep(ctx context.Context, todo []part) ([]part, error) {
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return todo, err
		}
		granted := int(r.cap.take(int64(todo[0].batch)))
		if granted == 0 {
			return todo, errMaxRows
		}
		start := time.Now()
		batch, rest, deleted, err := r.step(ctx, todo[0].rows, granted)
		r.cap.giveBack(int64(granted) - deleted)

		pause := r.policy.Pause
		switch {
		case errors.Is(err, ErrLocked): // the others first, then this in smaller pieces
			todo = append(todo, part{batch.Rows, max(1, todo[0].batch/lockedSplit), true})
			pause = lockedRest/2 + rand.N(lockedRest/2)
		case err != nil:
			return todo, err
		case deleted == 0:
			pause = 0
		default:
			r.res.DeletedRows += deleted
			r.res.Batches++
		}
		if todo[0].rows = rest; rest == nil {
			todo = todo[1:]
		}
		r.log.LogAttrs(ctx, slog.LevelDebug, "batch", slog.Int64("rows", deleted),
			slog.Duration("took", time.Since(start)), slog.Bool("locked", err != nil))
		if len(todo) > 0 {
			sleep(ctx, pause)
		}
	}
	return nil, nil
}

// step deletes the first batch of rows, at most n of them.
func (r *run) step(ctx context.Context, rows Range, n int) (Batch, Range, int64, error) {
	batch, rest, err := r.table.Next(ctx, rows, n)
	if err != nil {
		return batch, rest, 0, err
	}
	if batch.Unbounded {
		r.find(Warning("unbounded-batch", "more rows than a batch may hold share one expiration, and the role may not read what tells them apart: they go in one statement, and with MAX_ROWS set they stay. GRANT SELECT ON dbo.ClientAccessTokens to the role to have them deleted in batches"))
		if r.policy.MaxRows > 0 {
			return batch, rest, 0, errMaxRows
		}
	}
	deleted, err := r.table.Delete(ctx, batch.Rows)
	return batch, rest, deleted, err
}

// sleep rests for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
