package purge

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// holderInterval is how often the server is asked at most who holds locks.
	holderInterval = 2 * time.Second
	// holderPatience is how long that may take.
	holderPatience = time.Second
)

// locks remembers the locks that a turn met.
type locks struct {
	table bool // a look met one on the whole table, and none got through since

	mu    sync.Mutex // of what follows, for several workers
	asked time.Time
	now   Holder
	last  Holder // that was seen
	busy  error  // it was no lock at last, but this; nil is a lock
}

// by says why err made the run rest: that what, rows or the table, is locked, and by
// whom, or that the server is short of memory. It asks the server now and then, over
// conn, which waits for nothing else.
func (l *locks) by(ctx context.Context, conn Conn, log *slog.Logger, what string, err error) string {
	teller, ok := conn.(LockTeller)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy = nil; errors.Is(err, ErrBusy) {
		l.busy = err
		return ErrBusy.Error()
	}
	if ok && time.Since(l.asked) >= holderInterval {
		ctx, cancel := context.WithTimeout(ctx, holderPatience)
		defer cancel()
		recoverPanic(ctx, log, func() (err error) { //nolint:errcheck // it is but a hint
			l.now, err = teller.LockHolder(ctx)
			return err
		})
		l.asked = time.Now()
	}
	if l.now.Name == "" {
		return what + " locked by another session"
	}
	l.last = l.now
	return what + " locked by " + l.now.Name
}

// stayed is found where a run stopped and met locks to the end.
func (l *locks) stayed() Finding {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy != nil {
		return ShortOfMemory.Found(l.busy.Error())
	}
	text := "rows stayed locked by other sessions until the run ended; the next run tries again. "
	switch last := l.last; {
	case last.Name == "":
		text += "Look for a long transaction on the table"
	case last.Mend == "":
		text += "Locks were held last by " + last.Name
	default:
		text += "Locks were held last by " + last.Name + ". To end that: " + last.Mend
	}
	return LockedRows.Found(text)
}
