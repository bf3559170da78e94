package purge

import (
	"context"
	"sync"
	"time"
)

const (
	// holderInterval is how often the server is asked at most who holds locks.
	holderInterval = 2 * time.Second
	// holderPatience is how long that may take.
	holderPatience = time.Second
)

// Holder is who holds locks on a table.
type Holder struct {
	Name string // such as "session 4711 of psql"; "" is nobody that the login may see
	Mend string // the statement that ends it, where there is one
}

// LockTeller is a Conn that can say who holds locks on the table.
type LockTeller interface {
	// LockHolder returns who has written longest among those with locks that a delete
	// waits for, as far as the login may see it.
	LockHolder(ctx context.Context) (Holder, error)
}

// locks remembers the locks that a turn met.
type locks struct {
	table bool // a look met one on the whole table, and none got through since

	mu    sync.Mutex // of what follows, for several workers
	asked time.Time
	now   Holder
	last  Holder // that was seen
}

// lockedBy says that what, rows or the table, is locked, and by whom. It asks the
// server now and then, over conn, which waits for nothing else.
func (t *turn) lockedBy(ctx context.Context, conn Conn, what string) string {
	teller, ok := conn.(LockTeller)
	t.locks.mu.Lock()
	defer t.locks.mu.Unlock()
	if ok && time.Since(t.locks.asked) >= holderInterval {
		ctx, cancel := context.WithTimeout(ctx, holderPatience)
		defer cancel()
		recoverPanic(ctx, t.log, func() (err error) { //nolint:errcheck // it is but a hint
			t.locks.now, err = teller.LockHolder(ctx)
			return err
		})
		t.locks.asked = time.Now()
	}
	if t.locks.now.Name == "" {
		return what + " locked by another session"
	}
	t.locks.last = t.locks.now
	return what + " locked by " + t.locks.now.Name
}

// stayedLocked is found where a run stopped and met locks to the end.
func (t *turn) stayedLocked() Finding {
	t.locks.mu.Lock()
	defer t.locks.mu.Unlock()
	text := "rows stayed locked by other sessions until the run ended; the next run tries again. "
	switch last := t.locks.last; {
	case last.Name == "":
		text += "Look for a long transaction on the table"
	case last.Mend == "":
		text += "Locks were held last by " + last.Name
	default:
		text += "Locks were held last by " + last.Name + ". To end that: " + last.Mend
	}
	return LockedRows.Found(text)
}
