package sqlserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mssql "github.com/microsoft/go-mssqldb"

	"edfi-token-purge/functions/internal/purge"
)

// What changes under a run, and what triggers make of its deletes, on a real server.

// meddler is an engine that calls back ahead of the nth delete of a connection.
type meddler struct {
	purge.Engine
	nth    int
	meddle func()
	once   *sync.Once
}

type meddledConn struct {
	purge.Conn
	meddler
	deletes int
}

func meddle(s Server, nth int, do func()) meddler {
	return meddler{s, nth, do, new(sync.Once)}
}

func (m meddler) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	conn, err := m.Engine.Open(ctx, database, table, lock)
	if err != nil {
		return nil, err
	}
	return &meddledConn{Conn: conn, meddler: m}, nil
}

func (m *meddledConn) Delete(ctx context.Context, b purge.Batch) (purge.Deleted, error) {
	if m.deletes++; m.deletes == m.nth {
		m.once.Do(func() { // a test that fails in it ends its goroutine, which must not be the run's
			done := make(chan struct{})
			go func() { defer close(done); m.meddle() }()
			<-done
		})
	}
	return m.Conn.Delete(ctx, b)
}

// runWith is run with another engine, in batches of 10.
func runWith(t *testing.T, engine purge.Engine, database string, change func(*purge.Policy)) purge.DatabaseResult {
	t.Helper()
	p := policy
	p.BatchSize = 10
	if change != nil {
		change(&p)
	}
	to := target(Server{}, database)
	to.Engine = engine
	return purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]
}

func TestWhatChangesUnderARunIsNoticedInTheVeryBatch(t *testing.T) {
	s := newStage(t, "purge_changed")
	const table = "dbo.ClientAccessTokens"
	recreate := func(t *testing.T, db database, column string) {
		must(t, db.conn, "DROP TABLE "+table)
		must(t, db.conn, "CREATE TABLE "+table+" (Id uniqueidentifier NOT NULL PRIMARY KEY, Expiration "+column+" NOT NULL, Scope nvarchar(max))")
		must(t, db.conn, "CREATE INDEX IX_ClientAccessTokens_Expiration ON "+table+" (Expiration)")
		must(t, db.conn, "GRANT SELECT, DELETE ON "+table+" TO "+s.login)
	}
	for name, c := range map[string]struct {
		change  func(*testing.T, database)
		status  purge.Status
		deleted int64
		left    int
		want    string
	}{
		"the type": {func(t *testing.T, db database) {
			recreate(t, db, "datetime2")
			must(t, db.conn, "INSERT INTO "+table+" (Id, Expiration) VALUES (NEWID(), DATEADD(minute, -30, SYSUTCDATETIME()))")
		}, purge.Failed, 10, 1, "datetime2"},
		"the type in its place": {func(t *testing.T, db database) {
			db.DropIndex(t)
			must(t, db.conn, "ALTER TABLE "+table+" ALTER COLUMN Expiration datetime2")
			must(t, db.conn, "CREATE INDEX IX_ClientAccessTokens_Expiration ON "+table+" (Expiration)")
		}, purge.Failed, 10, 20, "datetime2"},
		"the table is another one": {func(t *testing.T, db database) {
			recreate(t, db, "datetime")
			db.Insert(t, spread(3, db.Now(t).Add(-30*time.Minute))...)
		}, purge.Complete, 13, 0, ""},
		"a trigger puts rows back": {func(t *testing.T, db database) {
			must(t, db.conn, "GRANT INSERT ON "+table+" TO "+s.login) // Babelfish has no ownership chains
			must(t, db.conn, "CREATE TRIGGER dbo.Back ON "+table+" AFTER DELETE AS INSERT INTO dbo.ClientAccessTokens SELECT * FROM deleted")
		}, purge.Failed, 10, 20, "trigger"},
		"the right to delete": {func(t *testing.T, db database) {
			must(t, db.conn, "REVOKE DELETE ON "+table+" FROM "+s.login+"r")
		}, purge.Failed, 10, 20, "GRANT SELECT, DELETE"},
		"the index":         {func(t *testing.T, db database) { db.DropIndex(t) }, purge.Complete, 30, 0, ""},
		"the table is gone": {func(t *testing.T, db database) { db.DropTable(t) }, purge.Failed, 10, -1, "does not exist"},
		"a view is in its place": {func(t *testing.T, db database) {
			must(t, db.conn, "SELECT * INTO dbo.Others FROM "+table)
			db.DropTable(t)
			must(t, db.conn, "CREATE VIEW "+table+" AS SELECT * FROM dbo.Others")
			must(t, db.conn, "GRANT SELECT, DELETE ON "+table+" TO "+s.login)
		}, purge.Failed, 10, 20, "a view"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := s.create(t)
			db.Insert(t, spread(30, db.Now(t).Add(-time.Hour))...)
			r := runWith(t, meddle(s.server(), 2, func() { c.change(t, db) }), db.name, nil)
			if r.Status != c.status || r.DeletedRows != c.deleted || !strings.Contains(r.Error, c.want) {
				t.Errorf("%+v", r)
			}
			if c.left < 0 {
				return
			}
			if left := one[int](t, db.conn, "SELECT COUNT(*) FROM dbo.ClientAccessTokens"); left != c.left {
				t.Errorf("%d rows are left", left)
			}
		})
	}
}

func TestCountsAreTrueWhateverATriggerDoes(t *testing.T) {
	s := newStage(t, "purge_counted")
	for name, c := range map[string]struct {
		trigger string
		status  purge.Status
		left    int // -1 is any number
		want    string
	}{
		"AFTER, all back": {"AFTER DELETE AS INSERT INTO dbo.ClientAccessTokens SELECT * FROM deleted", purge.Failed, 40, "trigger"},
		"AFTER, half back": {
			"AFTER DELETE AS INSERT INTO dbo.ClientAccessTokens SELECT * FROM deleted WHERE DATEPART(second, Expiration) % 2 = 0",
			purge.Failed, 20, "trigger",
		},
		"AFTER, back under other keys": {"AFTER DELETE AS INSERT INTO dbo.ClientAccessTokens (Id, Expiration) SELECT NEWID(), Expiration FROM deleted", purge.Failed, 40, "trigger"},
		"AFTER, back and live": {
			"AFTER DELETE AS INSERT INTO dbo.ClientAccessTokens (Id, Expiration) SELECT Id, DATEADD(day, 1, GETUTCDATE()) FROM deleted",
			purge.Complete, 40, "",
		},
		"INSTEAD OF, none": {"INSTEAD OF DELETE AS BEGIN DECLARE @x int END", purge.Failed, 40, "trigger"},
		"INSTEAD OF, forwarding": {
			"INSTEAD OF DELETE AS DELETE token FROM dbo.ClientAccessTokens AS token WHERE token.Id IN (SELECT Id FROM deleted)",
			purge.Complete, 0, "",
		},
		"INSTEAD OF, half": {
			"INSTEAD OF DELETE AS DELETE token FROM dbo.ClientAccessTokens AS token WHERE token.Id IN (SELECT Id FROM deleted) AND DATEPART(second, token.Expiration) % 2 = 0",
			purge.Failed, 20, "trigger",
		},
		"on INSERT":     {"AFTER INSERT AS BEGIN DECLARE @x int END", purge.Complete, 0, ""},
		"a refusal":     {"AFTER DELETE AS IF EXISTS (SELECT * FROM deleted WHERE DATEPART(second, Expiration) = 7) BEGIN RAISERROR('keep', 16, 1); ROLLBACK END", purge.Failed, 1, "keep"},
		"a throw":       {"AFTER DELETE AS IF EXISTS (SELECT * FROM deleted WHERE DATEPART(second, Expiration) = 7) BEGIN; THROW 51000, 'keep', 1 END", purge.Failed, 1, "keep"},
		"it commits":    {"AFTER DELETE AS COMMIT", purge.Failed, 30, "commits"},
		"it rolls back": {"AFTER DELETE AS ROLLBACK", purge.Failed, 40, "refuses"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := s.create(t)
			db.Insert(t, spread(40, db.Now(t).Add(-time.Hour).Truncate(time.Minute))...)
			must(t, db.conn, "GRANT INSERT ON dbo.ClientAccessTokens TO "+s.login) // Babelfish has no ownership chains
			must(t, db.conn, "CREATE TRIGGER dbo.Meddle ON dbo.ClientAccessTokens "+c.trigger)
			if _, green := rehearse(t, s.server(), db, 40); green && c.status == purge.Failed {
				t.Error("a check has nothing to tell")
			}
			checked, green := rehearse(t, s.admin(), db, 40)
			if green && c.status == purge.Failed || found(checked, "not-rehearsed") != strings.Contains(c.trigger, "COMMIT") || found(checked, "delete-trigger") == (name == "on INSERT") {
				t.Errorf("who sees the trigger is told %+v", checked)
			}
			r := runWith(t, s.server(), db.name, nil)
			left := one[int](t, db.conn, "SELECT COUNT(*) FROM dbo.ClientAccessTokens")
			if r.Status != c.status || left != c.left || r.DeletedRows != int64(40-left) || !strings.Contains(r.Error, c.want) {
				t.Errorf("%d are left, %+v", left, r)
			}
		})
	}
}

// rehearse has a check made, which must leave so many rows as they are. green is that it
// found nothing in the way of a purge.
func rehearse(t *testing.T, login Server, db database, rows int) (r purge.DatabaseResult, green bool) {
	t.Helper()
	r = runWith(t, login, db.name, func(p *purge.Policy) { p.Action = purge.Check })
	if left := len(db.Expirations(t)); left != rows {
		t.Errorf("a check left %d rows of %d, %+v", left, rows, r)
	}
	return r, r.Status == purge.Complete && !found(r, "not-rehearsed")
}

// What commits may be out of a check's sight. It tries nothing where a trigger runs what
// it does not see, and elsewhere no COMMIT ends its transaction.
func TestACheckDeletesNothingThoughSomethingCommits(t *testing.T) {
	s := newStage(t, "purge_rehearsed")
	for name, statements := range map[string][]string{
		"a procedure":       {"CREATE PROCEDURE dbo.Ends AS COMMIT", "GRANT EXECUTE ON dbo.Ends TO " + s.login, "CREATE TRIGGER dbo.Meddle ON dbo.ClientAccessTokens AFTER DELETE AS EXEC dbo.Ends"},
		"another trigger":   {"CREATE TABLE dbo.Audit (Id uniqueidentifier)", "GRANT INSERT ON dbo.Audit TO " + s.login, "CREATE TRIGGER dbo.Ends ON dbo.Audit AFTER INSERT AS COMMIT", "CREATE TRIGGER dbo.Meddle ON dbo.ClientAccessTokens AFTER DELETE AS INSERT INTO dbo.Audit SELECT Id FROM deleted"},
		"a loop":            {"CREATE TRIGGER dbo.Meddle ON dbo.ClientAccessTokens AFTER DELETE AS WHILE @@TRANCOUNT > 0 COMMIT"},
		"one more to begin": {"CREATE TRIGGER dbo.Meddle ON dbo.ClientAccessTokens AFTER DELETE AS BEGIN ROLLBACK; BEGIN TRANSACTION END"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := s.create(t)
			db.Insert(t, spread(40, db.Now(t).Add(-time.Hour))...)
			for _, statement := range statements {
				must(t, db.conn, statement)
			}
			if _, green := rehearse(t, s.admin(), db, 40); green {
				t.Error("the check has nothing to tell")
			}
		})
	}
}

func TestACheckThatTriesADeleteIsGreenWhereAPurgeGetsThrough(t *testing.T) {
	s := newStage(t, "purge_tried")
	for _, index := range []bool{true, false} {
		db := s.create(t)
		if !index {
			db.DropIndex(t)
		}
		db.Insert(t, spread(40, db.Now(t).Add(-time.Hour))...)
		must(t, db.conn, "CREATE TRIGGER dbo.Quiet ON dbo.ClientAccessTokens AFTER DELETE AS BEGIN DECLARE @x int END")
		if _, green := rehearse(t, s.admin(), db, 40); !green {
			t.Errorf("index %t: the check fails", index)
		}
		if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 40 {
			t.Errorf("index %t: %+v", index, r)
		}
	}
}

func TestACheckTriesFewRowsWhereTheyTakeLong(t *testing.T) {
	s := newStage(t, "purge_tried_slow")
	db := s.create(t)
	db.Insert(t, spread(300, db.Now(t).Add(-time.Hour))...)
	db.Delay(t, 20*time.Millisecond) // 6 s for all of them
	there := s.admin()
	there.Longest = 400 * time.Millisecond
	conn, err := there.Open(t.Context(), db.name, purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cut, _, err := conn.Cut(t.Context(), conn.Expired(time.Time{}, db.Now(t)), 1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	rows, gone, err := conn.(purge.Rehearser).Rehearse(t.Context(), cut[0])
	if err != nil || rows == 0 || rows > 15 || gone != rows {
		t.Errorf("%d of %d rows, %v", gone, rows, err)
	}
	if left := len(db.Expirations(t)); left != 300 {
		t.Errorf("%d are left", left)
	}
}

// Without Ed-Fi's primary key a row can share its key with a live one.
func TestAKeySharedWithALiveRowCountsRight(t *testing.T) {
	s := newStage(t, "purge_twins")
	for _, triggered := range []bool{false, true} {
		db := s.create(t)
		must(t, db.conn, "DROP TABLE dbo.ClientAccessTokens")
		must(t, db.conn, "CREATE TABLE dbo.ClientAccessTokens (Id uniqueidentifier NOT NULL, Expiration datetime NOT NULL, Scope nvarchar(max))")
		must(t, db.conn, "CREATE INDEX IX_ClientAccessTokens_Expiration ON dbo.ClientAccessTokens (Expiration)")
		must(t, db.conn, "GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO "+s.login)
		if triggered {
			must(t, db.conn, "CREATE TRIGGER dbo.Quiet ON dbo.ClientAccessTokens AFTER DELETE AS BEGIN DECLARE @x int END")
		}
		db.Insert(t, spread(25, db.Now(t).Add(-time.Hour))...)
		must(t, db.conn, "INSERT INTO dbo.ClientAccessTokens SELECT Id, DATEADD(day, 1, Expiration), NULL FROM dbo.ClientAccessTokens")
		r := runWith(t, s.server(), db.name, nil)
		if left := len(db.Expirations(t)); r.Status != purge.Complete || r.DeletedRows != 25 || left != 25 {
			t.Errorf("trigger %t: %d are left, %+v", triggered, left, r)
		}
	}
}

func TestARowThatAnotherTableRefersToStaysAlone(t *testing.T) {
	s := newStage(t, "purge_referenced")
	db := s.create(t)
	db.Insert(t, spread(40, db.Now(t).Add(-time.Hour))...)
	must(t, db.conn, "CREATE TABLE dbo.Logs (Id uniqueidentifier REFERENCES dbo.ClientAccessTokens (Id))")
	must(t, db.conn, "INSERT INTO dbo.Logs SELECT TOP (1) Id FROM dbo.ClientAccessTokens ORDER BY Expiration")
	for _, login := range []Server{s.server(), s.admin()} {
		if r, _ := rehearse(t, login, db, 40); r.Status != purge.Failed || !found(r, "refused-rows") {
			t.Errorf("%+v", r)
		}
	}
	r := runWith(t, s.server(), db.name, nil)
	if left := len(db.Expirations(t)); r.Status != purge.Failed || r.DeletedRows != 39 || left != 1 || !strings.Contains(r.Error, "refuses") {
		t.Errorf("%d are left, %+v", left, r)
	}
}

func TestRowsThatStayComeWithTheStatementThatMendsForWhoMaySeeIt(t *testing.T) {
	s := newStage(t, "purge_mends")
	for name, c := range map[string]struct{ code, act, mend string }{
		"a trigger that refuses": {"refused-rows", "CREATE TRIGGER dbo.Keep ON dbo.ClientAccessTokens AFTER DELETE AS THROW 51000, 'keep', 1", "DISABLE TRIGGER [Keep];"},
		"a trigger that keeps":   {"kept-rows", "CREATE TRIGGER dbo.Keep ON dbo.ClientAccessTokens INSTEAD OF DELETE AS BEGIN DECLARE @x int END", "DISABLE TRIGGER [Keep];"},
		"a foreign key":          {"refused-rows", "CREATE TABLE dbo.Logs (Id uniqueidentifier CONSTRAINT Leads REFERENCES dbo.ClientAccessTokens (Id)); INSERT INTO dbo.Logs SELECT Id FROM dbo.ClientAccessTokens", "DROP CONSTRAINT ["},
	} {
		db := s.create(t)
		db.Insert(t, spread(3, db.Now(t).Add(-time.Hour))...)
		for statement := range strings.SplitSeq(c.act, "; ") {
			must(t, db.conn, statement)
		}
		for _, action := range []purge.Action{purge.Check, purge.Purge} {
			r := runWith(t, s.admin(), db.name, func(p *purge.Policy) { p.Action = action })
			told := ""
			for _, f := range r.Findings {
				if f.Code == c.code {
					told = f.Message
				}
			}
			if r.Status != purge.Failed || !strings.Contains(strings.ToUpper(told), strings.ToUpper(c.mend)) { // Babelfish keeps names in lower case
				t.Errorf("%s, %s: %q, %+v", name, action, told, r)
			}
		}
	}
}

// What Microsoft's documentation says of policies, on a server that has them.
func TestAPolicyIsToldAsFarAsTheLoginCanTell(t *testing.T) {
	s := newStage(t, "purge_policy")
	db := s.create(t)
	if db.onBabelfish(t) {
		t.Skip("it takes SQL Server: Babelfish has no row-level security of T-SQL")
	}
	db.Insert(t, spread(40, db.Now(t).Add(-time.Hour).Truncate(time.Minute))...)
	must(t, db.conn, "CREATE FUNCTION dbo.Even (@at datetime) RETURNS TABLE WITH SCHEMABINDING AS RETURN SELECT 1 AS even WHERE DATEPART(second, @at) % 2 = 0")
	must(t, db.conn, "CREATE SECURITY POLICY dbo.Hides ADD FILTER PREDICATE dbo.Even (Expiration) ON dbo.ClientAccessTokens")
	if r := runWith(t, s.server(), db.name, nil); r.Status != purge.Complete || r.DeletedRows != 20 || !found(r, "policy-unseen") {
		t.Errorf("unseen: %+v", r)
	}
	must(t, db.conn, "GRANT VIEW DEFINITION TO "+s.login)
	if r := runWith(t, s.server(), db.name, nil); r.Status != purge.Failed || !found(r, "row-security") {
		t.Errorf("seen: %+v", r)
	}
	must(t, db.conn, "REVOKE VIEW DEFINITION FROM "+s.login)
	must(t, db.conn, "DROP SECURITY POLICY dbo.Hides")
	db.Insert(t, spread(40, db.Now(t).Add(-time.Hour).Truncate(time.Minute))...)
	must(t, db.conn, "CREATE SECURITY POLICY dbo.Blocks ADD BLOCK PREDICATE dbo.Even (Expiration) ON dbo.ClientAccessTokens BEFORE DELETE")
	if _, green := rehearse(t, s.server(), db, 60); green {
		t.Error("blocked: a check has nothing to tell")
	}
	if r := runWith(t, s.server(), db.name, nil); r.Status != purge.Failed || r.DeletedRows != 20 || !found(r, "refused-rows") {
		t.Errorf("blocked: %+v", r)
	}
}

func TestTheOldestAgeCountsLockedRows(t *testing.T) {
	s := newStage(t, "purge_age")
	db := s.create(t)
	now := db.Now(t).Truncate(time.Second)
	old := now.Add(-48 * time.Hour)
	db.Insert(t, old)
	db.Insert(t, spread(20, now.Add(-time.Hour))...)
	release := db.Lock(t, old)
	defer release()
	r := runWith(t, s.server(), db.name, func(p *purge.Policy) { p.MaxRows = 10 })
	if age := r.OldestExpiredAge(); age != nil && *age < 47*time.Hour {
		t.Errorf("%s, %+v", age, r)
	}
	if !r.OldestExpiration.Equal(old) {
		t.Errorf("%+v", r)
	}
}

func TestWhoHoldsALockIsToldAndHowToEndThat(t *testing.T) {
	s := newStage(t, "purge_holder")
	db := s.create(t)
	at := db.Now(t).Add(-time.Hour)
	db.Insert(t, at)
	unlock := db.Lock(t, at)
	defer unlock()
	conn, err := s.admin().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	holder, err := conn.(purge.LockTeller).LockHolder(t.Context())
	if err != nil || !contains(holder.Name, "session ", " of go-mssqldb") || !strings.HasPrefix(holder.Mend, "KILL ") {
		t.Fatalf("%+v, %v", holder, err)
	}
	must(t, db.conn, holder.Mend)
	for holder.Name != "" { // it takes a moment
		if holder, err = conn.(purge.LockTeller).LockHolder(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if r := run(t, s.server(), db.name); r.StopReason != purge.AlreadyRunning {
		t.Errorf("the connection that asked has lost its lock: %+v", r)
	}
}

func TestTokensThatAreIssuedAreSeenWithTheLeastRights(t *testing.T) {
	s := newStage(t, "purge_sense")
	db := s.create(t)
	there := s.server()
	there.Memory = new(Memory)
	db.Insert(t, spread(30, db.Now(t).Add(20*time.Minute))...)
	open := func() *conn {
		c, err := there.Open(t.Context(), db.name, purge.ClientAccessTokens, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c.(*conn)
	}
	first, second := open(), open()
	writes := func(c *conn) int64 {
		n, err := c.Writes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	writes(first)
	before := writes(second)
	db.Insert(t, spread(7, db.Now(t).Add(30*time.Minute))...)
	db.Insert(t, spread(2, db.Now(t).Add(-time.Hour))...) // nobody's tokens
	tx, err := db.conn.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // it ends with the test
	if _, err := tx.Exec("UPDATE dbo.ClientAccessTokens SET Scope = N'locked' WHERE Expiration > @p1", mssql.DateTime1(db.Now(t))); err != nil {
		t.Fatal(err)
	}
	there.Memory.of(first).looked = time.Now().Add(time.Hour) // just now, however long that took
	if after := writes(first); after-before != 7 {
		t.Errorf("%d after %d", after, before)
	}
}

// Where others write, a run makes way for them.
func TestARunMakesWayForTokensThatAreIssued(t *testing.T) {
	s := newStage(t, "purge_way")
	db := s.create(t)
	db.Insert(t, spread(600, db.Now(t).Add(-time.Hour))...)
	there := s.server()
	there.Memory = new(Memory)
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() {
		for ctx.Err() == nil {
			db.conn.Exec("INSERT INTO dbo.ClientAccessTokens (Id, Expiration) SELECT NEWID(), DATEADD(millisecond, n, DATEADD(minute, 30, GETUTCDATE())) FROM (VALUES (1), (5), (9), (13), (17), (21)) AS t (n)") //nolint:errcheck // the run would tell
		}
	})
	defer func() { cancel(); writing.Wait() }()
	r := runWith(t, there, db.name, func(p *purge.Policy) { p.BatchTarget, p.MaxDuration = 50*time.Millisecond, time.Minute })
	if r.Status != purge.Complete || r.DeletedRows != 600 || r.ThrottledMs == 0 || !found(r, "throttled") {
		t.Errorf("%+v", r)
	}
}

// A run without an index begins anywhere, so that none reads the same rows again and
// again that the one before it has emptied.
func TestWithoutAnIndexRunsBeginElsewhere(t *testing.T) {
	s := newStage(t, "purge_slices")
	db := s.create(t)
	db.DropIndex(t)
	db.Insert(t, spread(200, db.Now(t).Add(-time.Hour))...)
	conn, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	starts := map[int]bool{}
	for range 40 {
		cut, _, err := conn.Cut(t.Context(), conn.Expired(time.Time{}, db.Now(t)), 1000, 1)
		if err != nil {
			t.Fatal(err)
		}
		starts[cut[0].Window.(window).slice] = true
	}
	if len(starts) < 2 {
		t.Errorf("40 runs began at %v", starts)
	}
	if r := runWith(t, meddle(s.server(), -1, nil), db.name, nil); r.Status != purge.Failed && r.DeletedRows != 0 {
		t.Errorf("beside another: %+v", r)
	}
	conn.Close()
	if r := runWith(t, s.server(), db.name, nil); r.Status != purge.Complete || r.DeletedRows != 200 {
		t.Errorf("%+v", r)
	}
}

func TestTheServersOwnClockTimesABatch(t *testing.T) {
	s := newStage(t, "purge_took")
	db := s.create(t)
	db.Insert(t, spread(5, db.Now(t).Add(-time.Hour))...)
	db.Delay(t, 20*time.Millisecond)
	conn, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cut, _, err := conn.Cut(t.Context(), conn.Expired(time.Time{}, db.Now(t)), 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	gone, err := conn.Delete(t.Context(), cut[0])
	if err != nil || gone.Rows != 5 || gone.Took < 100*time.Millisecond || gone.Took > time.Since(start) || gone.Writes != 0 {
		t.Errorf("%+v, %v", gone, err)
	}
}

func TestAStatementThatTakesTooLongIsGivenUp(t *testing.T) {
	s := newStage(t, "purge_longest")
	db := s.create(t)
	db.Insert(t, spread(10, db.Now(t).Add(-time.Hour))...)
	there := s.server()
	db.Delay(t, 100*time.Millisecond)
	conn, err := there.Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cut, _, err := conn.Cut(t.Context(), conn.Expired(time.Time{}, db.Now(t)), 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	conn.(*adapterConn).server.Longest = 600 * time.Millisecond
	if db.onBabelfish(t) { // which has all of the time until the connection is given up
		conn.(*adapterConn).server.Linger = time.Millisecond
	}
	if gone, err := conn.Delete(t.Context(), cut[0]); !errors.Is(err, purge.ErrTimeout) || gone.Rows != 0 {
		t.Errorf("%+v, %v", gone, err)
	}
	if db.onBabelfish(t) { // which hears of no cancellation while a statement runs, so that the connection may be lost
		conn.Close()
		if conn, err = there.Open(t.Context(), db.name, purge.ClientAccessTokens, false); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	patient := cut[0]
	patient.Patient = true
	if gone, err := conn.Delete(t.Context(), patient); gone.Rows != 10 || err != nil {
		t.Errorf("%+v, %v", gone, err)
	}
	if left := len(db.Expirations(t)); left != 0 {
		t.Errorf("%d are left", left)
	}
}

type adapterConn = conn

func TestADatabaseIsOpenedByItsOwnNameAlone(t *testing.T) {
	s := newStage(t, "purge_names")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	for _, name := range []string{db.name + " ", strings.Replace(db.name, "EdFi", "ＥdFi", 1)} {
		r := run(t, s.server(), name)
		if left := len(db.Expirations(t)); r.Status != purge.Failed || left != 1 {
			t.Errorf("%q: %d are left, %+v", name, left, r)
		}
	}
	if r := run(t, s.server(), strings.ToUpper(db.name)); r.Status != purge.Complete && r.Findings[0].Code != "no-database" {
		t.Errorf("%+v", r)
	}
}

// A login that has no user in a database that a pattern matches: it fails, with the mend.
func TestADatabaseThatTheLoginMayNotEnterFailsByName(t *testing.T) {
	s := newStage(t, "purge_outside")
	db := s.create(t)
	must(t, db.conn, "ALTER ROLE "+s.login+"r DROP MEMBER "+s.login)
	must(t, db.conn, "DROP USER "+s.login)
	all, err := s.server().Databases(t.Context(), "master")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(d purge.Database) bool { return strings.EqualFold(d.Name, db.name) })
	if i < 0 || all[i].Closed != "" {
		t.Fatalf("%+v", all)
	}
	if j := slices.IndexFunc(all, func(d purge.Database) bool { return d.Name == "master" }); j < 0 || all[j].Closed == "" {
		t.Errorf("%+v", all)
	}
	to := target(s.server(), db.name)
	to.Databases = []purge.Database{{Name: db.name, Matched: true}}
	r := purge.Run(t.Context(), to, policy, func(purge.DatabaseResult) {}).Databases[0]
	if r.Status != purge.Failed || r.Findings[0].Code != "no-access" || !contains(r.Error, "role.sql", "!"+db.name) {
		t.Errorf("%+v", r)
	}
}

// A database that recovers, as after a restart, is about to serve: it is opened, which
// waits for it, and not left out.
func TestOnlyWhatIsClosedToEverybodyIsLeftOut(t *testing.T) {
	needServer(t)
	states := []string{"ONLINE", "RESTORING", "RECOVERING", "RECOVERY_PENDING", "SUSPECT", "EMERGENCY", "OFFLINE"} // by number, as sys.databases has them
	var all []string
	for number, state := range states {
		all = append(all, fmt.Sprintf("(N'%s', 0, NULL, %d, N'%[1]s')", state, number))
	}
	stands := "FROM (VALUES " + strings.Join(all, ", ") + ") AS databases (name, is_distributor, source_database_id, state, state_desc)"
	open := column[string](t, connect(t, "master"), "SELECT name FROM ("+strings.NewReplacer("FROM sys.databases", stands, "ORDER BY name", "").Replace(sqlDatabases)+") AS listed (name, closed) WHERE closed = '' ORDER BY name")
	if !slices.Equal(open, []string{"ONLINE", "RECOVERING"}) {
		t.Errorf("%q", open)
	}
}

// SQL Server 2022 and later take an encryption from the first byte.
func TestStrictEncryptionOpensANewServer(t *testing.T) {
	s := newStage(t, "purge_strict")
	there := s.server()
	db := s.create(t)
	version := one[string](t, db.conn, "SELECT CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(50))")
	if there.TLS == nil || db.onBabelfish(t) || strings.HasPrefix(version, "14.") || strings.HasPrefix(version, "15.") {
		t.Skip("it takes SQL Server 2022 with TLS")
	}
	there.Strict = true
	db.Insert(t, db.Now(t).Add(-time.Hour))
	if r := run(t, there, db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
		t.Errorf("%+v", r)
	}
}

// Ed-Fi's own trigger runs on INSERT alone, and one that is turned off runs never.
func TestOnlyATriggerThatRunsOnDeleteIsOne(t *testing.T) {
	s := newStage(t, "purge_events")
	for name, c := range map[string]struct {
		statements []string
		want       bool
	}{
		"on INSERT":             {[]string{"CREATE TRIGGER dbo.Logs ON dbo.ClientAccessTokens AFTER INSERT AS BEGIN DECLARE @x int END"}, false},
		"on UPDATE":             {[]string{"CREATE TRIGGER dbo.Logs ON dbo.ClientAccessTokens AFTER UPDATE AS BEGIN DECLARE @x int END"}, false},
		"on INSERT and DELETE":  {[]string{"CREATE TRIGGER dbo.Logs ON dbo.ClientAccessTokens AFTER INSERT, DELETE AS BEGIN DECLARE @x int END"}, true},
		"on DELETE, turned off": {[]string{"CREATE TRIGGER dbo.Logs ON dbo.ClientAccessTokens AFTER DELETE AS BEGIN DECLARE @x int END", "DISABLE TRIGGER Logs ON dbo.ClientAccessTokens"}, false},
	} {
		db := s.create(t)
		for _, statement := range c.statements {
			must(t, db.conn, statement)
		}
		r := runWith(t, s.admin(), db.name, func(p *purge.Policy) { p.Action = purge.Check })
		if r.Status != purge.Complete || found(r, "delete-trigger") != c.want {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
