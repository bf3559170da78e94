package purge

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

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

// isOver tells whether ctx has ended, or is to end at this very moment: where several end
// at one time, they do so one after the other.
func isOver(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(deadline)
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

// withoutCancel returns ctx with its deadline, and not canceled before.
func withoutCancel(ctx context.Context) (context.Context, context.CancelFunc) {
	whole := context.WithoutCancel(ctx)
	if deadline, limited := ctx.Deadline(); limited {
		return context.WithDeadline(whole, deadline)
	}
	return whole, func() {}
}

// withStopDeadline derives the context that ends when the run must stop, and says
// what it means when that happens.
func withStopDeadline(ctx context.Context, p Policy, start time.Time) (context.Context, StopReason, context.CancelFunc) {
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
