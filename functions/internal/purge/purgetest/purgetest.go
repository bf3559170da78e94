// Package purgetest is the suite that every adapter of package purge must pass,
// on a real server. [Run] and, for the other tables, [RunTable] are called from the
// adapter's own tests.
package purgetest

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// Server is an engine under test, and the means to set its stage.
type Server interface {
	// Engine logs in with the rights of a purge.
	Engine() purge.Engine
	// Create makes a fresh database with that table as its product has it, empty, and
	// drops it when the test ends. Its zone is UTC, and the login has its rights on that
	// table alone.
	Create(t testing.TB, table purge.Table) Database
	// Tick is the step of the table's column of expirations: the least time between two
	// that differ.
	Tick(table purge.Table) time.Duration
	// Local tells whether the zone of what that column holds is not certain.
	Local(table purge.Table) bool
}

// Database is one database of the stage, and in it the table that it was created for.
// Its methods act as an administrator, past the engine.
type Database interface {
	Name() string
	// Insert adds one row for each expiration, given as UTC.
	Insert(t testing.TB, expirations ...time.Time)
	// Expirations returns those of all rows, ascending.
	Expirations(t testing.TB) []time.Time
	// Now reads the database's clock as UTC.
	Now(t testing.TB) time.Time
	// SetTimeZone sets the zone of the sessions to come; false where the engine
	// has none.
	SetTimeZone(t testing.TB, zone string) bool
	// DropIndex drops the index on expirations, where the table has one.
	DropIndex(t testing.TB)
	// DropTable drops the table.
	DropTable(t testing.TB)
	// Revoke takes a right on the table, SELECT or DELETE, from the purge's login,
	// and returns the code of what a purge then finds.
	Revoke(t testing.TB, right string) (code string)
	// Record makes the server note how many rows each statement deletes; the
	// function returns the numbers noted so far.
	Record(t testing.TB) func() []int
	// Lock locks the rows with the given expiration, until release is called.
	Lock(t testing.TB, expiration time.Time) (release func())
	// Delay makes the server take so long over each row that it deletes.
	Delay(t testing.TB, perRow time.Duration)
	// Keep makes the server ignore each delete without an error.
	Keep(t testing.TB)
	// Disconnect ends all connections of the purge's login from the server's
	// side.
	Disconnect(t testing.TB)
}

var quiet = slog.New(slog.DiscardHandler)

// batch is small, so that a few rows make many batches.
const batch = 10

func policy() purge.Policy {
	return purge.Policy{Action: purge.Purge, BatchSize: batch, StopBefore: 500 * time.Millisecond, ConnectTimeout: time.Minute}
}

// suite is a table on a server.
type suite struct {
	Server
	table purge.Table
}

func (s suite) Create(t testing.TB) Database {
	t.Helper()
	return due{s.Server.Create(t, s.table), s.table}
}

func (s suite) Tick() time.Duration { return s.Server.Tick(s.table) }

// indexed tells whether the table has an index on expirations, as its product ships it.
func (s suite) indexed() bool { return s.table.Name != purge.AdminTokens.Name }

// due is a Database whose times are those from which on rows may go, by the rule of its
// table, and not those in the column.
type due struct {
	Database
	table purge.Table
}

func (d due) Insert(t testing.TB, times ...time.Time) {
	t.Helper()
	columns := make([]time.Time, len(times))
	for i, at := range times {
		columns[i] = d.table.Cutoff(at, 0)
	}
	d.Database.Insert(t, columns...)
}

func (d due) Expirations(t testing.TB) []time.Time {
	t.Helper()
	times := d.Database.Expirations(t)
	for i := range times {
		times[i] = times[i].Add(d.table.Grace + d.table.Retention)
	}
	return times
}

func (d due) Lock(t testing.TB, at time.Time) func() {
	t.Helper()
	return d.Database.Lock(t, d.table.Cutoff(at, 0))
}

// do runs p in one database, named outright, and returns its result.
func (s suite) do(ctx context.Context, t testing.TB, engine purge.Engine, database string, p purge.Policy) purge.DatabaseResult {
	t.Helper()
	return s.doIn(ctx, t, engine, purge.Database{Name: database}, p)
}

func (s suite) doIn(ctx context.Context, t testing.TB, engine purge.Engine, database purge.Database, p purge.Policy) purge.DatabaseResult {
	t.Helper()
	reports := 0
	target := purge.Target{Engine: engine, Tables: []purge.Table{s.table}, Name: "engine", Server: "server:1", Databases: []purge.Database{database}, Log: quiet}
	result := purge.Run(ctx, target, p, func(purge.DatabaseResult) { reports++ })
	if reports != 1 || len(result.Databases) != 1 {
		t.Fatalf("%d reports, %d results; want one each", reports, len(result.Databases))
	}
	one := result.Databases[0]
	if worse := slices.IndexFunc(one.Findings, func(f purge.Finding) bool { return f.Level != "error" && f.Level != "warning" }); worse >= 0 &&
		slices.ContainsFunc(one.Findings[worse:], func(f purge.Finding) bool { return f.Level != "info" }) {
		t.Errorf("the worst findings don't stand first: %+v", one.Findings)
	}
	if result.DeletedRows != one.DeletedRows || result.Status != one.Status && one.Status != purge.Skipped {
		t.Errorf("total %s with %d rows, its only database %s with %d", result.Status, result.DeletedRows, one.Status, one.DeletedRows)
	}
	return one
}

// opening returns how long it takes to open db: seconds, where a busy server
// compiles the first statements of each session.
func opening(t testing.TB, s suite, db Database) time.Duration {
	t.Helper()
	start := time.Now()
	table, err := s.Engine().Open(t.Context(), db.Name(), s.table, true)
	if err != nil {
		t.Fatal(err)
	}
	table.Close()
	return time.Since(start)
}

// expect holds r against what must have come out.
func expect(t testing.TB, r purge.DatabaseResult, status purge.Status, reason purge.StopReason, deleted int) {
	t.Helper()
	if r.Status != status || r.StopReason != reason || r.DeletedRows != int64(deleted) {
		t.Errorf("%s / %s with %d rows deleted, want %s / %s with %d; error %q, findings %v",
			r.Status, r.StopReason, r.DeletedRows, status, reason, deleted, r.Error, r.Findings)
	}
}

// at tells whether the instant is known and that of want.
func at(instant *purge.Instant, want time.Time) bool { return instant != nil && instant.Equal(want) }

// age returns that of the oldest expired row; -1 is not known.
func age(r purge.DatabaseResult) time.Duration {
	if age := r.OldestExpiredAge(); age != nil {
		return *age
	}
	return -1
}

func expectLeft(t testing.TB, db Database, want ...time.Time) {
	t.Helper()
	got := db.Expirations(t)
	if len(got) != len(want) {
		t.Errorf("%d rows are left, want %d", len(got), len(want))
		return
	}
	for i := range got {
		if !got[i].Equal(want[i]) {
			t.Errorf("row %d that is left expires at %s, want %s", i, got[i], want[i])
		}
	}
}

func finding(r purge.DatabaseResult, code string) bool {
	return slices.ContainsFunc(r.Findings, func(f purge.Finding) bool { return f.Code == code })
}

// spread returns n instants, step apart, the first at from.
func spread(n int, from time.Time, step time.Duration) []time.Time {
	times := make([]time.Time, n)
	for i := range times {
		times[i] = from.Add(time.Duration(i) * step)
	}
	return times
}

// routed is an engine that leaves each database to another one.
type routed map[string]purge.Engine

func (r routed) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	if engine := r[database]; engine != nil {
		return engine.Open(ctx, database, table, lock)
	}
	for _, engine := range r { // any of them will say that there is no such database
		return engine.Open(ctx, database, table, lock)
	}
	return nil, purge.NotPurgeable{Kind: purge.NoDatabase, Message: "there is no database at all"}
}

// hooked is an engine whose clock stands still where now is set, and that calls
// back after each batch.
type hooked struct {
	purge.Engine
	now     time.Time
	deleted func(batches int)
}

type hookedConn struct {
	purge.Conn
	hooked
	batches *int
}

func (h hooked) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	conn, err := h.Engine.Open(ctx, database, table, lock)
	if err != nil {
		return nil, err
	}
	return hookedConn{conn, h, new(int)}, nil
}

func (h hookedConn) Facts() purge.Facts {
	facts := h.Conn.Facts()
	if !h.now.IsZero() {
		facts.Now, facts.Clock = h.now, h.now
	}
	return facts
}

func (h hookedConn) Delete(ctx context.Context, b purge.Batch) (purge.Deleted, error) {
	gone, err := h.Conn.Delete(ctx, b)
	h.called()
	return gone, err
}

// DeleteAll implements purge.Pipeliner for the engines that do.
func (h hookedConn) DeleteAll(ctx context.Context, first purge.Batch, next func() (purge.Batch, bool), done func(purge.Deleted, error)) {
	if p, ok := h.Conn.(purge.Pipeliner); ok {
		p.DeleteAll(ctx, first, next, func(gone purge.Deleted, err error) { h.called(); done(gone, err) })
		return
	}
	for b, more := first, true; more; b, more = next() {
		done(h.Delete(ctx, b))
	}
}

func (h hookedConn) called() {
	if *h.batches++; h.deleted != nil {
		h.deleted(*h.batches)
	}
}
