package sqlserver

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

// SQL Server tells a login with the least rights nothing of others' writes. What it
// can see is the tokens themselves: each that is issued expires after most of those
// that there are, and what is logged comes after all. So the newest issuedWatched are counted again and again, which is
// a seek of a millisecond that locks nothing.

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
	databases map[string]*remembered
	issued    int64 // tokens, in all databases, as far as they were seen
}

// remembered is what is known of one database, or of one table.
type remembered struct {
	opened  bool
	looking bool
	floor   time.Time // expirations beyond it are counted; zero is none yet
	count   int64     // of them, at the time of looked
	looked  time.Time
}

// of returns what is known of a database or table. The caller holds the lock.
func (m *Memory) of(database string) *remembered {
	if m.databases == nil {
		m.databases = map[string]*remembered{}
	}
	if m.databases[database] == nil {
		m.databases[database] = &remembered{}
	}
	return m.databases[database]
}

// opened remembers that the database was open in this run.
func (m *Memory) opened(database string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(database).opened = true
}

// wasOpen tells whether the database was open in this run.
func (m *Memory) wasOpen(database string) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.of(database).opened
}

// watched returns what Memory knows the table by.
func (c *conn) watched() string { return c.database + "\x00" + c.table.Name }

// Writes implements [purge.WriteCounter]: how many tokens were issued while the run
// looked, and one more, as 0 would be that nobody can tell. The run's own deletes are
// not among them.
func (c *conn) Writes(ctx context.Context) (int64, error) {
	m := c.server.Memory
	if m == nil || !c.facts.indexed {
		return 0, nil
	}
	m.mu.Lock()
	known := m.of(c.watched())
	if known.looking { // another connection is at it
		defer m.mu.Unlock()
		return 1 + m.issued, nil
	}
	known.looking = true
	watch := *known
	m.mu.Unlock()

	issued, err := c.issued(ctx, &watch)

	m.mu.Lock()
	defer m.mu.Unlock()
	watch.looking = false
	if err != nil {
		known.looking = false
		return 0, c.explain("count the tokens issued", err)
	}
	*known = watch
	m.issued += issued
	return 1 + m.issued, nil
}

// issued returns how many tokens were issued since the last look, where that was just
// now.
func (c *conn) issued(ctx context.Context, watch *remembered) (int64, error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return 0, err
	}
	defer cancel()
	now := time.Now()
	last, fresh := watch.count, now.Sub(watch.looked) < issuedFresh
	watch.looked = now
	if watch.floor.IsZero() {
		return 0, late(ctx, c.watch(ctx, watch))
	}
	err = c.session.QueryRowContext(ctx, c.facts.on(sqlIssued), sql.Named("most", issuedMost), sql.Named("floor", c.facts.instant(watch.floor))).Scan(&watch.count)
	if err != nil {
		return 0, late(ctx, err)
	}
	issued := max(0, watch.count-last)
	if watch.count >= issuedMost {
		err = late(ctx, c.watch(ctx, watch))
	}
	if !fresh {
		issued = 0
	}
	return issued, err
}

// watch chooses what to count beyond.
func (c *conn) watch(ctx context.Context, watch *remembered) error {
	var oldest sql.NullTime
	clock := c.facts.floor(c.facts.clock)
	err := c.session.QueryRowContext(ctx, c.facts.on(sqlIssuedFloor), sql.Named("most", issuedWatched), sql.Named("floor", c.facts.instant(clock))).Scan(&oldest, &watch.count)
	if watch.floor = clock; watch.count == issuedWatched {
		watch.floor, watch.count = oldest.Time, watch.count-1
	}
	return err
}
