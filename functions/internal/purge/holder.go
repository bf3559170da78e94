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

// holders remembers who held locks on the table, for several workers at a time.
type holders struct {
	mu    sync.Mutex
	asked time.Time
	now   Holder
	last  Holder // that was seen
}

// lockedBy says that what, rows or the table, is locked, and by whom. It asks the
// server now and then, over conn, which waits for nothing else.
func (t *turn) lockedBy(ctx context.Context, conn Conn, what string) string {
	teller, ok := conn.(LockTeller)
	t.holders.mu.Lock()
	defer t.holders.mu.Unlock()
	if ok && time.Since(t.holders.asked) >= holderInterval {
		ctx, cancel := context.WithTimeout(ctx, holderPatience)
		defer cancel()
		recoverPanic(ctx, t.log, func() (err error) { //nolint:errcheck // it is but a hint
			t.holders.now, err = teller.LockHolder(ctx)
			return err
		})
		t.holders.asked = time.Now()
	}
	if t.holders.now.Name == "" {
		return what + " locked by another session"
	}
	t.holders.last = t.holders.now
	return what + " locked by " + t.holders.now.Name
}

// stayedLocked is found where a run stopped and met locks to the end.
func (t *turn) stayedLocked() Finding {
	t.holders.mu.Lock()
	defer t.holders.mu.Unlock()
	text := "rows stayed locked by other sessions until the run ended; the next run tries again. "
	switch last := t.holders.last; {
	case last.Name == "":
		text += "Look for a long transaction on the table"
	case last.Mend == "":
		text += "Locks were held last by " + last.Name
	default:
		text += "Locks were held last by " + last.Name + ". To end that: " + last.Mend
	}
	return LockedRows.Found(text)
}
