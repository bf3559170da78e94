package sqlserver

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

// SQL Server tells a login with the least rights nothing of others' writes. What it
// can see is the tokens themselves: each that is issued expires after most of those
// that there are, and what is logged comes after all. So the newest issuedWatched are
// counted again and again, which is a seek of a millisecond that locks nothing.

const (
	// issuedWatched is how many of the tokens that expire last are watched at first,
	// so that one that lives longer than the others does not hide what is issued.
	issuedWatched = 2000
	// issuedMost is how many are counted before the watch begins anew further on.
	issuedMost = 2 * issuedWatched
	// issuedFresh is how old a count may be for the next one to tell what was issued
	// just now, and not long since: the run asks of one database at a time.
	issuedFresh = time.Second
)

// Memory is what the connections of one run to a server know together. The zero value
// is ready for use.
type Memory struct {
	mu        sync.Mutex
	databases map[string]bool // that were open in this run
	watches   map[watched]*watch
	issued    int64 // tokens, in all databases, as far as they were seen
}

// watched is a table whose tokens are counted.
type watched struct{ database, table string }

// watch is what is known of one.
type watch struct {
	looking bool
	floor   time.Time // expirations beyond it are counted; zero is none yet
	count   int64     // of them, at the time of looked
	looked  time.Time
}

// of returns what is known of c's table. The caller holds the lock.
func (m *Memory) of(c *conn) *watch {
	table := watched{c.database, c.table.Name}
	if m.watches == nil {
		m.watches = map[watched]*watch{}
	}
	if m.watches[table] == nil {
		m.watches[table] = &watch{}
	}
	return m.watches[table]
}

// opened remembers that the database was open in this run.
func (m *Memory) opened(database string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.databases == nil {
		m.databases = map[string]bool{}
	}
	m.databases[database] = true
}

// wasOpen tells whether the database was open in this run.
func (m *Memory) wasOpen(database string) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.databases[database]
}

// Writes implements [purge.WriteCounter]: how many tokens were issued while the run
// looked, and one more, as 0 would be that nobody can tell. The run's own deletes are
// not among them.
func (c *conn) Writes(ctx context.Context) (int64, error) {
	m := c.server.Memory
	if m == nil || !c.facts.indexed {
		return 0, nil
	}
	m.mu.Lock()
	known := m.of(c)
	if known.looking { // another connection is at it
		defer m.mu.Unlock()
		return 1 + m.issued, nil
	}
	known.looking = true
	seen := *known
	m.mu.Unlock()

	issued, err := c.issued(ctx, &seen)

	m.mu.Lock()
	defer m.mu.Unlock()
	seen.looking = false
	if err != nil {
		known.looking = false
		return 0, c.explain("count the tokens issued", err)
	}
	*known = seen
	m.issued += issued
	return 1 + m.issued, nil
}

// issued returns how many tokens were issued since the last look, where that was just
// now.
func (c *conn) issued(ctx context.Context, w *watch) (int64, error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return 0, err
	}
	defer cancel()
	now := time.Now()
	last, fresh := w.count, now.Sub(w.looked) < issuedFresh
	w.looked = now
	if w.floor.IsZero() {
		return 0, late(ctx, c.startWatch(ctx, w))
	}
	err = c.session.QueryRowContext(ctx, c.facts.on(sqlIssued), sql.Named("most", issuedMost), sql.Named("floor", c.facts.instant(w.floor))).Scan(&w.count)
	if err != nil {
		return 0, late(ctx, err)
	}
	issued := max(0, w.count-last)
	if w.count >= issuedMost {
		err = late(ctx, c.startWatch(ctx, w))
	}
	if !fresh {
		issued = 0
	}
	return issued, err
}

// startWatch chooses what to count beyond.
func (c *conn) startWatch(ctx context.Context, w *watch) error {
	var oldest sql.NullTime
	clock := c.facts.floor(c.facts.clock)
	err := c.session.QueryRowContext(ctx, c.facts.on(sqlIssuedFloor), sql.Named("most", issuedWatched), sql.Named("floor", c.facts.instant(clock))).Scan(&oldest, &w.count)
	if w.floor = clock; w.count == issuedWatched {
		w.floor, w.count = oldest.Time, w.count-1
	}
	return err
}
