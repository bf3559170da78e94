package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/purge/purgetest"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/relay"
)

var server *pgserver.Server

func TestMain(m *testing.M) {
	var err error
	// Nothing of this must outlive the test, so it need not reach a disk.
	server, err = pgserver.Start(context.Background(), pgserver.Options{Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Stop() //nolint:errcheck // the tests have spoken
	os.Exit(code)
}

func TestConformance(t *testing.T) {
	t.Run("LeastRights", func(t *testing.T) {
		t.Parallel()
		purgetest.Run(t, newStage(t, "edfi_token_purge", ""))
	})
	t.Run("WithoutPlaces", func(t *testing.T) {
		t.Parallel()
		purgetest.Run(t, newStage(t, "purge_blind", withoutPlaces))
	})
	t.Run("WithSelectOnTheTable", func(t *testing.T) {
		t.Parallel()
		purgetest.Run(t, newStage(t, "purge_reader", "GRANT SELECT ON dbo.clientaccesstokens TO purge_reader"))
	})
	t.Run("ThroughPgBouncer", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, "purge_pooled", "")
		// After a database that is not there PgBouncer lets nobody ask for it for a while.
		through := pool(t, s, map[string]string{"pool_mode": "session", "server_reset_query": "", "server_login_retry": "1"})
		s.through = &through
		purgetest.Run(t, s)
	})
	for _, table := range purge.Tables()[1:] {
		t.Run(table.Name, func(t *testing.T) {
			t.Parallel()
			purgetest.RunTable(t, newStage(t, "purge_"+strings.ToLower(table.Relation), ""), table)
		})
	}
	for name, shape := range shapes {
		t.Run(purge.ConfigurationTokens.Name+name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, "purge_"+strings.ToLower(name), "")
			s.shape = shape
			purgetest.RunTable(t, s, purge.ConfigurationTokens)
		})
	}
}

// stage implements [purgetest.Server] for one role.
type stage struct {
	role    string
	extra   string  // a grant beyond role.sql
	through *Server // where not directly
	shape   shape   // of its table, where not that of tables.sql
}

const password = `p@ss;'"word /?#`

// withoutPlaces leaves less than the rights of role.sql: rows are told apart by their
// expiration alone.
const withoutPlaces = "REVOKE SELECT (ctid) ON dbo.clientaccesstokens FROM {role}_rights"

func newStage(t *testing.T, role, extra string) stage {
	t.Helper()
	admin := connect(t, "postgres")
	must(t, admin, "DROP ROLE IF EXISTS "+role)
	must(t, admin, "CREATE ROLE "+role+" LOGIN PASSWORD "+quote(password))
	return stage{role: role, extra: extra}
}

func (s stage) Engine() purge.Engine {
	if s.through != nil {
		return *s.through
	}
	return s.server()
}

func (s stage) server() Server {
	return Server{
		Host: server.Host, Port: server.Port,
		User: redact.NewSecret(s.role), Password: redact.NewSecret(password),
		LockTimeout: 300 * time.Millisecond,
	}
}

func (s stage) Tick(purge.Table) time.Duration { return time.Microsecond }

func (s stage) Local(table purge.Table) bool { return table.Local && !s.shape.instants }

var created atomic.Int64

// Two at once can't create or grant one role.
var granting sync.Mutex

func (s stage) Create(t testing.TB, table purge.Table) purgetest.Database {
	if table.Name == purge.ClientAccessTokens.Name {
		return s.create(t)
	}
	return estate(t, s, table)
}

// create makes a database that has ClientAccessTokens alone.
func (s stage) create(t testing.TB) database {
	t.Helper()
	db := s.createEmpty(t)
	grant(t, db)
	must(t, db.conn, strings.ReplaceAll(s.extra, "{role}", s.role))
	return db
}

// createEmpty makes one in which the login has no rights yet.
func (s stage) createEmpty(t testing.TB) database {
	t.Helper()
	name := fmt.Sprintf("EdFi_Admin_%s_%d", s.role, created.Add(1))
	if err := edfi.CreateDatabase(t.Context(), server.URL("postgres"), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		admin := connect(t, "postgres")
		must(t, admin, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
	})
	db := database{name: name, role: s.role, conn: connect(t, name), its: relations[purge.ClientAccessTokens.Name]}
	if err := edfi.CreateSchema(t.Context(), db.conn); err != nil {
		t.Fatal(err)
	}
	return db
}

// grant runs infra/postgres/role.sql.
func grant(t testing.TB, db database) {
	t.Helper()
	grants, err := os.ReadFile("../../../infra/postgres/role.sql")
	if err != nil {
		t.Fatal(err)
	}
	granting.Lock()
	defer granting.Unlock()
	for range 2 { // it can be run again
		must(t, db.conn, strings.ReplaceAll(string(grants), "edfi_token_purge", db.role))
	}
}

// database implements [purgetest.Database].
type database struct {
	name, role string
	conn       *pgx.Conn
	its        relation // that it stands for
}

// on returns sql for the database's table.
func (d database) on(sql string) string {
	return strings.NewReplacer("{table}", d.its.table, "{column}", d.its.column).Replace(sql)
}

func (d database) Name() string { return d.name }

func (d database) Insert(t testing.TB, expirations ...time.Time) {
	t.Helper()
	if _, err := d.conn.Exec(t.Context(), d.its.into()+"unnest($1::timestamp[]) AS at", expirations); err != nil {
		t.Fatal(err)
	}
}

func (d database) Expirations(t testing.TB) []time.Time {
	t.Helper()
	rows, _ := d.conn.Query(t.Context(), d.on("SELECT {column} FROM {table} ORDER BY {column}"))
	times, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		t.Fatal(err)
	}
	return times
}

func (d database) Now(t testing.TB) time.Time {
	return one[time.Time](t, d.conn, "SELECT now() AT TIME ZONE 'utc'")
}

func (d database) SetTimeZone(t testing.TB, zone string) bool {
	must(t, d.conn, "ALTER DATABASE "+pgx.Identifier{d.name}.Sanitize()+" SET timezone = "+quote(zone))
	return true
}

func (d database) DropIndex(t testing.TB) {
	if d.its.index != "" {
		must(t, d.conn, "DROP INDEX "+d.its.index)
	}
}
func (d database) DropTable(t testing.TB) { must(t, d.conn, d.on("DROP TABLE {table}")) }

func (d database) Revoke(t testing.TB, right string) (code string) {
	must(t, d.conn, fmt.Sprintf(d.on("REVOKE %s ON {table} FROM %s, %[2]s_rights"), right, d.role))
	return "no-" + strings.ToLower(right) + "-right"
}

func (d database) Record(t testing.TB) func() []int {
	must(t, d.conn, d.on(`
CREATE TABLE dbo.statements (deleted int);
CREATE FUNCTION dbo.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN INSERT INTO dbo.statements SELECT count(*) FROM gone; RETURN NULL; END $$;
CREATE TRIGGER record AFTER DELETE ON {table}
REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION dbo.record()`))
	return func() []int {
		rows, _ := d.conn.Query(t.Context(), "SELECT deleted FROM dbo.statements")
		deleted, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil {
			t.Fatal(err)
		}
		return deleted
	}
}

func (d database) Lock(t testing.TB, expiration time.Time) func() {
	conn := connect(t, d.name)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if tag, err := tx.Exec(t.Context(), d.on("SELECT FROM {table} WHERE {column} = $1 FOR UPDATE"), expiration); err != nil || tag.RowsAffected() == 0 {
		t.Fatalf("%d rows locked: %v", tag.RowsAffected(), err)
	}
	return func() { tx.Rollback(t.Context()) } //nolint:errcheck // once is enough
}

func (d database) Delay(t testing.TB, perRow time.Duration) {
	d.beforeDelete(t, fmt.Sprintf("PERFORM pg_sleep(%f); RETURN OLD", perRow.Seconds()))
}

func (d database) Keep(t testing.TB) { d.beforeDelete(t, "RETURN NULL") }

func (d database) beforeDelete(t testing.TB, body string) {
	must(t, d.conn, d.on(`
CREATE FUNCTION dbo.before_delete() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+body+`; END $$;
CREATE TRIGGER before_delete BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION dbo.before_delete()`))
}

func (d database) Disconnect(t testing.TB) {
	const sessions = " FROM pg_stat_activity WHERE datname = current_database() AND usename = "
	one[int](t, d.conn, "SELECT count(pg_terminate_backend(pid))"+sessions+quote(d.role))
	for one[int](t, d.conn, "SELECT count(*)"+sessions+quote(d.role)) > 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

func connect(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), server.URL(database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func must(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func one[T any](t testing.TB, conn *pgx.Conn, sql string) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// What only PostgreSQL has.

func TestDatesThatGoHasNoFormFor(t *testing.T) {
	s := newStage(t, "purge_dates", "")
	db := s.create(t)
	must(t, db.conn, `INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), e::timestamp
FROM unnest(ARRAY['-infinity', '4713-01-01 00:00:00 BC', '0001-01-01', 'infinity', '294276-12-31 23:59:59.999999']) AS e`)
	r := run(t, s.server(), db.name)
	if r.Status != purge.Complete || r.DeletedRows != 3 || r.OldestExpiration.String() != "0001-01-01T00:00:00Z" {
		t.Errorf("%+v", r)
	}
	if left := one[int](t, db.conn, "SELECT count(*) FROM dbo.clientaccesstokens"); left != 2 {
		t.Errorf("%d rows are left", left)
	}
}

func TestTheClientsTimeZoneDoesNotMatter(t *testing.T) {
	s := newStage(t, "purge_pgtz", "")
	for _, zone := range []string{"Asia/Tokyo", "America/Chicago", "UTC"} {
		t.Setenv("PGTZ", zone)
		t.Setenv("TZ", zone)
		db := s.create(t)
		now := db.Now(t)
		db.Insert(t, now.Add(-8*time.Hour), now.Add(-time.Minute), now.Add(time.Minute), now.Add(8*time.Hour))
		if r := run(t, s.server(), db.name); r.DeletedRows != 2 || len(db.Expirations(t)) != 2 {
			t.Errorf("%s: %+v", zone, r)
		}
	}
}

func TestTheServersFormOfDatesDoesNotMatter(t *testing.T) {
	s := newStage(t, "purge_datestyle", "")
	for _, style := range []string{"German", "SQL, DMY", "Postgres, MDY"} {
		db := s.create(t)
		must(t, db.conn, "ALTER DATABASE "+pgx.Identifier{db.name}.Sanitize()+" SET datestyle = "+quote(style))
		now := db.Now(t)
		db.Insert(t, now.Add(-8*time.Hour), now.Add(-time.Minute), now.Add(time.Minute), now.Add(8*time.Hour))
		if r := run(t, s.server(), db.name); r.DeletedRows != 2 || len(db.Expirations(t)) != 2 {
			t.Errorf("%s: %+v", style, r)
		}
	}
}

func TestALockedTableIsWaitedFor(t *testing.T) {
	s := newStage(t, "purge_table_lock", "GRANT SELECT ON dbo.clientaccesstokens TO purge_table_lock")
	for _, index := range []bool{true, false} {
		for _, action := range []purge.Action{purge.Purge, purge.DryRun, purge.Check} {
			t.Run(fmt.Sprintf("%s, index %t", action, index), func(t *testing.T) {
				t.Parallel()
				testLockedTable(t, s, action, index)
			})
		}
	}
}

func testLockedTable(t *testing.T, s stage, action purge.Action, index bool) {
	db := s.create(t)
	if !index {
		db.DropIndex(t)
	}
	db.Insert(t, db.Now(t).Add(-time.Hour))
	other := connect(t, db.name)
	must(t, other, "SET application_name = 'report'; BEGIN; LOCK TABLE dbo.clientaccesstokens IN ACCESS EXCLUSIVE MODE")
	short := policy
	short.Action, short.MaxDuration = action, 2*time.Second
	r := purge.Run(t.Context(), target(s.server(), db.name), short, func(purge.DatabaseResult) {}).Databases[0]
	if r.Status != purge.Partial || r.StopReason != purge.MaxDuration || !strings.Contains(text(r.Findings), "warning locked-rows") ||
		!strings.Contains(text(r.Findings), fmt.Sprintf("held last by session %d of report. To end that: SELECT pg_terminate_backend", other.PgConn().PID())) {
		t.Errorf("locked: %+v", r)
	}
	var unlocked sync.WaitGroup
	unlocked.Go(func() {
		time.Sleep(time.Second)
		other.Exec(context.Background(), "ROLLBACK") //nolint:errcheck // the run would say
	})
	r = act(t, s.server(), db.name, action)
	if unlocked.Wait(); r.Status != purge.Complete || strings.Contains(text(r.Findings), "locked-rows") || (r.DeletedRows == 1) != (action == purge.Purge) {
		t.Errorf("unlocked: %+v", r)
	}
}

// The login has the least rights, and sees of the others what everybody may.
func TestWhoHoldsLocksIsToldWithTheStatementThatEndsIt(t *testing.T) {
	s := newStage(t, "purge_holder", "")
	for holder, sql := range map[string]string{
		"rows":        "SELECT FROM dbo.clientaccesstokens FOR UPDATE",
		"no new rows": "LOCK TABLE dbo.clientaccesstokens IN SHARE MODE",
	} {
		t.Run(holder, func(t *testing.T) {
			t.Parallel()
			db := s.create(t)
			db.Insert(t, db.Now(t).Add(-time.Hour))
			other, young := connect(t, db.name), connect(t, db.name)
			must(t, other, "SET application_name = 'report'; BEGIN; "+sql)
			if holder == "rows" { // one that came later holds up nobody
				must(t, young, "BEGIN; INSERT INTO dbo.clientaccesstokens (id, expiration) VALUES (gen_random_uuid(), now() AT TIME ZONE 'utc' + '1 hour')")
			}
			name, waited := fmt.Sprintf("session %d of report", other.PgConn().PID()), make(chan string, 1000)
			short, to := policy, target(s.server(), db.name)
			short.MaxDuration = 2 * time.Second
			to.Waiting = func(_, why string) {
				select {
				case waited <- why:
				default:
				}
			}
			r := purge.Run(t.Context(), to, short, func(purge.DatabaseResult) {}).Databases[0]
			want := fmt.Sprintf("%s. To end that: SELECT pg_terminate_backend(%d);", name, other.PgConn().PID())
			if r.Status != purge.Partial || !strings.Contains(text(r.Findings), want) {
				t.Errorf("%+v, want %s", r, want)
			}
			if why := <-waited; why != "rows are locked by "+name {
				t.Errorf("waits: %s", why)
			}
		})
	}
}

func TestAnEmptyRunCostsFewRoundTrips(t *testing.T) {
	s := newStage(t, "purge_trips", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(time.Hour))
	between, err := relay.New(net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
	if err != nil {
		t.Fatal(err)
	}
	defer between.Close()
	through := s.server()
	through.Host, through.Port = "127.0.0.1", between.Port()
	if r := run(t, through, db.name); r.Status != purge.Complete {
		t.Fatalf("%+v", r)
	}
	// The log-in is startup and two of SCRAM; TLS would come on top. Then: settings,
	// facts and lock; limits and the look; unlock; and the farewell, which nobody waits for.
	connections, trips := between.Counts()
	t.Logf("%d round trips", trips)
	if connections != 1 || trips > 8 {
		t.Errorf("%d connections, %d round trips, want 1 and 8 at most", connections, trips)
	}
}

// On a server of its own, for those of the other tests would be others.
func TestARunTellsItsOwnWritesFromThoseOfOthers(t *testing.T) {
	t.Parallel()
	alone, err := pgserver.Start(t.Context(), pgserver.Options{Settings: map[string]string{"fsync": "off", "autovacuum": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { alone.Stop() }) //nolint:errcheck // the test has spoken
	s := Server{Host: alone.Host, Port: alone.Port, User: redact.NewSecret(alone.User), Password: redact.NewSecret(alone.Password), LockTimeout: time.Second}
	purgeThree := func(prefix string) (batches int) {
		t.Helper()
		var names []string
		for n := range 3 {
			names = append(names, fmt.Sprintf("%s_%d", prefix, n))
			if err := edfi.CreateDatabase(t.Context(), alone.URL("postgres"), names[n]); err != nil {
				t.Fatal(err)
			}
			conn, err := pgx.Connect(t.Context(), alone.URL(names[n]))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context()) //nolint:errcheck // nothing is under way
			if err := errors.Join(edfi.CreateSchema(t.Context(), conn), edfi.Fill(t.Context(), conn, edfi.FillOptions{Expired: 20_000}, nil)); err != nil {
				t.Fatal(err)
			}
		}
		// However slow the machine is, no batch shrinks for that.
		p := purge.Policy{Action: purge.Purge, BatchSize: 1000, BatchTarget: 10 * time.Minute, Concurrency: 2, Parallel: 3}
		r := purge.Run(t.Context(), target(s, names...), p, func(d purge.DatabaseResult) { batches += d.Batches })
		if r.Status != purge.Complete || r.DeletedRows != 60_000 {
			t.Errorf("%+v", r)
		}
		return batches
	}
	// Each database begins with batches of 100 and 400 rows, of which each of two
	// connections may have one.
	if batches := purgeThree("Alone"); batches < 60 || batches > 60+3*2*2 {
		t.Errorf("alone: %d batches, want about 60", batches)
	}
	var others sync.WaitGroup
	defer others.Wait()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	other, err := pgx.Connect(ctx, alone.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	others.Go(func() {
		defer other.Close(context.Background()) //nolint:errcheck // nothing is under way
		for ctx.Err() == nil {
			other.Exec(ctx, "SELECT pg_current_xact_id()") //nolint:errcheck // it ends with the context
			time.Sleep(time.Millisecond)
		}
	})
	if batches := purgeThree("Crowded"); batches < 120 {
		t.Errorf("beside others: %d batches, want many more than 60", batches)
	}
}

func TestAWindowIsReadThroughTheIndexAndARangeByItsPlace(t *testing.T) {
	s := newStage(t, "purge_plans", "GRANT SELECT ON dbo.clientaccesstokens TO purge_plans")
	db := s.create(t)
	if err := edfi.Fill(t.Context(), db.conn, edfi.FillOptions{Expired: 20_000, Live: 20_000}, nil); err != nil {
		t.Fatal(err)
	}
	// Statistics that know of no row are what a fresh restore has.
	must(t, db.conn, "DELETE FROM pg_statistic WHERE starelid = 'dbo.clientaccesstokens'::regclass")
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	c := opened.(*conn)
	expired := c.Expired(time.Time{}, db.Now(t)).(window)
	physical := window{from: expired.from, to: expired.to, physical: true, lower: page(0), upper: page(10)}
	emptied := window{from: expired.to, to: expired.to} // stands for the look over a table that is empty but for the live rows
	ends := c.facts.on(sqlEnds)
	for sql, part := range map[string]window{
		c.facts.on(sqlOldest): expired, ends: expired, c.facts.on(sqlDelete): expired, c.facts.on(sqlOldest) + " ": emptied,
		c.physical(sqlOldestPhysical): physical, c.physical(sqlEndPhysical): physical, c.physical(sqlDeletePhysical): physical,
	} {
		args := []any{part.from, part.to}
		if part.physical {
			args = append(args, part.lower, part.upper)
		}
		if strings.Contains(sql, "OFFSET") {
			args = append(args, 1000)
		}
		if sql == ends {
			args = append(args, 8)
		}
		if strings.Contains(sql, "changed: ") {
			args = append(args, c.facts.signature)
		}
		how, want := byIndex, "ix_clientaccesstokens_expiration"
		switch {
		case part.physical && c.facts.readsRanges():
			how, want = byPlace, "Tid Range Scan"
		case part.physical:
			how, want = byPlace, "Tid Scan"
		case part == emptied:
			how, want = inSequence, "Seq Scan"
		}
		if err := c.prepare(t.Context(), how, sql, 1); err != nil {
			t.Fatal(err)
		}
		// As a batch has it: prepared, and all but the look over the whole table planned once.
		var parameters []string
		for i := range args {
			parameters = append(parameters, fmt.Sprintf("$%d", i+1))
		}
		explain := fmt.Sprintf(`EXPLAIN EXECUTE "%s" (%s)`, c.prepared[sql].Name, strings.Join(parameters, ", "))
		lines, _ := c.pg.Query(t.Context(), explain, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
		plan, err := pgx.CollectRows(lines, pgx.RowTo[string])
		text := strings.Join(plan, "\n")
		if err != nil || !strings.Contains(text, want) || strings.Contains(text, "Sort Key: expiration") {
			t.Errorf("want %s: %v\n%s\n%s", want, err, sql, text)
		}
		if once := strings.Contains(text, "expiration >= $1"); once != (how != inSequence) {
			t.Errorf("planned once: %v\n%s\n%s", once, sql, text)
		}
	}
}

// A table with few rows on each page is one of which only a part was deleted.
func TestTheLastLookIsCutAtTheMarksOrReadsATableThatIsAllButEmpty(t *testing.T) {
	testLastLook(t, newStage(t, "purge_marks", withoutPlaces), 10, 3)
	testLastLook(t, newStage(t, "purge_emptied", withoutPlaces), 100, 1)
	testLastLook(t, newStage(t, "purge_places", ""), 100, 2)
}

func testLastLook(t *testing.T, s stage, fill, parts int) {
	db := s.create(t)
	must(t, db.conn, fmt.Sprintf("ALTER TABLE dbo.clientaccesstokens SET (fillfactor = %d)", fill))
	if err := edfi.Fill(t.Context(), db.conn, edfi.FillOptions{Expired: 3 * deadRows, Live: 10}, nil); err != nil {
		t.Fatal(err)
	}
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	c := opened.(*conn)
	all := c.Expired(time.Time{}, db.Now(t)).(window)
	all.sampled = true // as if the rows were not most of the table
	var deleted int64
	var trail purge.Trail
	for rest := purge.Window(all); rest != nil; {
		var cut []purge.Batch
		if cut, rest, err = c.Cut(t.Context(), rest, 5000, deadRows/5000); err != nil {
			t.Fatal(err)
		}
		c.DeleteAll(t.Context(), cut[0], following(cut[1:]), func(gone purge.Deleted, err error) {
			if deleted += gone.Rows; err != nil {
				t.Fatal(err)
			}
		})
		if trail.Rows = deleted; rest != nil {
			trail.Checkpoints = append(trail.Checkpoints, rest)
		}
	}
	looks, err := c.looks(t.Context(), all, trail)
	if err != nil {
		t.Fatal(err)
	}
	if parts == 2 && !c.facts.readsRanges() {
		parts = 1
	}
	if deleted != 3*deadRows || len(looks) != parts || looks[0].mostlyDead != (fill == 100) {
		t.Errorf("%d rows deleted, the last look in %d parts, want %d; mostly dead %v", deleted, len(looks), parts, looks[0].mostlyDead)
	}
	if from, to := looks[0].from, looks[len(looks)-1].to; from != all.from || to != all.to {
		t.Errorf("the looks cover %v to %v", from, to)
	}
	if from, to := looks[0].lower, looks[len(looks)-1].upper; looks[0].physical && (from != page(0) || to != page(lastPage)) {
		t.Errorf("the looks cover %v to %v", from, to)
	}
	for i := range looks[1:] {
		if looks[i].to != looks[i+1].from && !looks[i].physical || looks[i].upper != looks[i+1].lower {
			t.Errorf("a gap between looks %d and %d", i, i+1)
		}
	}
	// Nothing is left, then there are rows behind the sweep, in the middle of it.
	if oldest, rest, err := c.Oldest(t.Context(), all, trail); err != nil || rest != nil {
		t.Errorf("%v, %v, %v", oldest, rest, err)
	}
	behind := trail.Checkpoints[1].(window).from.Time.Add(time.Microsecond)
	db.Insert(t, behind.Add(time.Minute), behind)
	if oldest, rest, err := c.Oldest(t.Context(), all, trail); err != nil || rest == nil || !oldest.Equal(behind) {
		t.Errorf("%v, %v, %v", oldest, rest, err)
	}
}

func TestErrorsSayWhatToDoAndLeakNothing(t *testing.T) {
	s := newStage(t, "purge_errors", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	id := one[string](t, db.conn, "SELECT id::text FROM dbo.clientaccesstokens")
	wrong := s.server()
	wrong.Password = redact.NewSecret("hunter2")
	closed := s.server()
	closed.Port = 1
	cases := map[string]struct {
		server Server
		stage  string
		want   []string
	}{
		"login":   {wrong, "", []string{"refused the login", "28P01"}},
		"port":    {closed, "", []string{"connection refused"}},
		"trigger": {s.server(), `SELECT 1`, []string{"cannot delete", redact.Mark, "P0001"}},
	}
	db.beforeDelete(t, `RAISE EXCEPTION 'cannot delete % of postgres://u:hunter2@h/d', OLD.id USING DETAIL = OLD.id::text`)
	for name, c := range cases {
		r := run(t, c.server, db.name)
		if r.Status != purge.Failed {
			t.Errorf("%s: %+v", name, r)
		}
		for _, want := range c.want {
			if !strings.Contains(r.Error, want) {
				t.Errorf("%s: %q, want %q", name, r.Error, want)
			}
		}
		for _, leak := range []string{id, password, "hunter2", s.role} {
			if strings.Contains(r.Error, leak) {
				t.Errorf("%s: %q leaks %q", name, r.Error, leak)
			}
		}
	}
}

func TestNothingIsSentToAServerThatCannotProveItsName(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	defer certificate.Close()
	for answer, want := range map[string]string{"S": "certificate can't be verified", "N": "TLS"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		sent := make(chan string, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			io.ReadFull(conn, make([]byte, 8)) //nolint:errcheck // the request for TLS
			io.WriteString(conn, answer)       //nolint:errcheck // as above
			if answer == "S" {
				conn = tls.Server(conn, certificate.TLS)
			}
			rest, _ := io.ReadAll(conn)
			sent <- string(rest)
		}()
		s := Server{
			Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port), User: redact.NewSecret("joe"), Password: redact.NewSecret("hunter2"),
			TLS: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"},
		}
		r := run(t, s, "EdFi_Admin")
		if r.Status != purge.Failed || !strings.Contains(r.Error, want) {
			t.Errorf("%s: %+v", answer, r)
		}
		if got := <-sent; strings.Contains(got, "joe") || strings.Contains(got, "EdFi_Admin") {
			t.Errorf("%s: sent %q", answer, got)
		}
	}
}

func TestAColumnOfAnotherTypeIsRefused(t *testing.T) {
	s := newStage(t, "purge_types", "")
	db := s.create(t)
	must(t, db.conn, "ALTER TABLE dbo.clientaccesstokens ALTER expiration TYPE timestamptz")
	for _, want := range []string{"timestamp with time zone", "no column expiration"} {
		if r := run(t, s.server(), db.name); r.Status != purge.Failed || !strings.Contains(text(r.Findings), "error wrong-table") || !strings.Contains(r.Error, want) {
			t.Errorf("%+v, want %s", r, want)
		}
		must(t, db.conn, "ALTER TABLE dbo.clientaccesstokens DROP IF EXISTS expiration")
	}
}

// The statements are prepared for the type that was there. West of Greenwich the
// session's zone would put the cut-off hours after now.
func TestAColumnThatBecomesTimestamptzWhileARunDeletesCostsNoLiveToken(t *testing.T) {
	s := newStage(t, "purge_retyped", "GRANT SELECT ON dbo.clientaccesstokens TO purge_retyped")
	for _, index := range []bool{true, false} {
		db := s.create(t)
		if !index {
			db.DropIndex(t)
		}
		db.SetTimeZone(t, "America/Chicago")
		now := db.Now(t)
		db.Insert(t, now.Add(-2*time.Hour), now.Add(-time.Hour), now.Add(time.Minute), now.Add(30*time.Minute))
		opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		var batches []purge.Batch
		for left := opened.Expired(time.Time{}, now); left != nil; {
			var cut []purge.Batch
			if cut, left, err = opened.Cut(t.Context(), left, 1, 1); err != nil {
				t.Fatal(err)
			}
			batches = append(batches, cut...)
		}
		var deleted int64
		for _, b := range batches {
			gone, err := opened.Delete(t.Context(), b)
			if deleted += gone.Rows; err != nil && (deleted != 1 || !errors.Is(err, purge.ErrChanged)) {
				t.Error(err)
			}
			if deleted == 1 {
				must(t, db.conn, "SET timezone = UTC; ALTER TABLE dbo.clientaccesstokens ALTER expiration TYPE timestamptz")
			}
		}
		if live := one[int](t, db.conn, "SELECT count(*) FROM dbo.clientaccesstokens WHERE expiration > now()"); live != 2 || deleted != 1 {
			t.Errorf("index %t: %d live tokens of 2 are left, %d rows deleted", index, live, deleted)
		}
	}
}

// A table whose file has no pages any more.
func TestATableThatIsTruncatedWhileARunDeletesIsComplete(t *testing.T) {
	s := newStage(t, "purge_truncated", "GRANT SELECT ON dbo.clientaccesstokens TO purge_truncated")
	db := s.create(t)
	if err := edfi.Fill(t.Context(), db.conn, edfi.FillOptions{Expired: 2 * deadRows}, nil); err != nil {
		t.Fatal(err)
	}
	tg := target(s.server(), db.name)
	tg.Engine = beforeLastLook{tg.Engine, func() { must(t, db.conn, "TRUNCATE dbo.clientaccesstokens") }}
	if r := purge.Run(t.Context(), tg, policy, func(purge.DatabaseResult) {}).Databases[0]; r.Status != purge.Complete || r.DeletedRows != 2*deadRows {
		t.Errorf("%+v", r)
	}
}

// beforeLastLook does something between the last batch and the look after it.
type beforeLastLook struct {
	purge.Engine
	do func()
}

type lookedAt struct {
	purge.Conn
	do    func()
	looks int
}

func (b beforeLastLook) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	conn, err := b.Engine.Open(ctx, database, table, lock)
	return &lookedAt{Conn: conn, do: b.do}, err
}

func (l *lookedAt) Oldest(ctx context.Context, w purge.Window, trail purge.Trail) (time.Time, purge.Window, error) {
	if l.looks++; l.looks == 2 {
		l.do()
	}
	return l.Conn.Oldest(ctx, w, trail)
}

// Whoever made it so may have reasons, such as a switch-over in progress.
func TestADatabaseThatIsReadOnlyByASettingIsLeftAlone(t *testing.T) {
	s := newStage(t, "purge_readonly", "")
	for _, by := range []string{"ROLE purge_readonly", "DATABASE %s"} {
		db := s.create(t)
		db.Insert(t, db.Now(t).Add(-time.Hour))
		must(t, db.conn, "ALTER "+strings.ReplaceAll(by, "%s", pgx.Identifier{db.name}.Sanitize())+" SET default_transaction_read_only = on")
		if r := run(t, s.server(), db.name); r.Status != purge.Failed || !strings.Contains(r.Error, "default_transaction_read_only") {
			t.Errorf("%s: %+v", by, r)
		}
		must(t, connect(t, "postgres"), "ALTER ROLE purge_readonly RESET ALL")
	}
}

func TestADatabaseThatLetsNobodyInIsListedAsClosed(t *testing.T) {
	s := newStage(t, "purge_closed", "")
	admin := connect(t, "postgres")
	for alter, want := range map[string]string{
		"ALTER DATABASE %s CONNECTION LIMIT 0":                             "no connections",
		"ALTER DATABASE %s ALLOW_CONNECTIONS false":                        "no connections",
		"REVOKE CONNECT ON DATABASE %s FROM PUBLIC, " + s.role + "_rights": "", // it fails by name
		"ALTER DATABASE %s IS_TEMPLATE true":                               "template",
		"ALTER DATABASE %s CONNECTION LIMIT 1":                             "",
	} {
		db := s.create(t)
		named := pgx.Identifier{db.name}.Sanitize()
		must(t, admin, strings.ReplaceAll(alter, "%s", named))
		t.Cleanup(func() { must(t, connect(t, "postgres"), "ALTER DATABASE "+named+" IS_TEMPLATE false") })
		all, err := s.server().Databases(t.Context(), "postgres")
		at := slices.IndexFunc(all, func(d purge.Database) bool { return d.Name == db.name })
		if err != nil || at < 0 || !strings.Contains(all[at].Closed, want) || want == "" && all[at].Closed != "" {
			t.Errorf("%s: %v, %+v, want %q", alter, err, all, want)
		}
	}
	// One that was named is tried nevertheless.
	named := s.create(t)
	must(t, admin, "REVOKE CONNECT ON DATABASE "+pgx.Identifier{named.name}.Sanitize()+" FROM PUBLIC, purge_closed_rights")
	if r := run(t, s.server(), named.name); r.Status != purge.Failed || !strings.Contains(text(r.Findings), "error no-access: the login may not connect to database "+named.name) {
		t.Errorf("%+v", r)
	}
	// For a superuser the limit does not hold.
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	must(t, admin, "ALTER DATABASE "+pgx.Identifier{db.name}.Sanitize()+" CONNECTION LIMIT 0; ALTER ROLE purge_closed SUPERUSER")
	all, err := s.server().Databases(t.Context(), "postgres")
	if err != nil || slices.Contains(all, purge.Database{Name: db.name, Closed: "it takes no connections"}) {
		t.Errorf("%v, %+v", err, all)
	}
	if r := run(t, s.server(), db.name); r.DeletedRows != 1 {
		t.Errorf("%+v", r)
	}
}

func TestADatabaseThatPgHbaRefusesIsNoBadLogin(t *testing.T) {
	own, err := pgserver.Start(t.Context(), pgserver.Options{
		Own: true, Settings: map[string]string{"fsync": "off"},
		Files: map[string][]byte{"pg_hba.conf": []byte("host postgres all all scram-sha-256\nhost rejected all all reject\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Stop() //nolint:errcheck // the test has spoken
	s := Server{Host: own.Host, Port: own.Port, User: redact.NewSecret(own.User), Password: redact.NewSecret(own.Password)}
	for _, name := range []string{"rejected", "without an entry"} {
		_, err := s.Open(t.Context(), name, purge.ClientAccessTokens, true)
		unfit, ok := errors.AsType[purge.NotPurgeable](err)
		if !ok || unfit.Kind.Code != "no-access" || !strings.Contains(unfit.Message, name) || strings.Contains(unfit.Message, own.User) || errors.Is(err, purge.ErrLogin) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.Password = redact.NewSecret("hunter2")
	if _, err := s.Open(t.Context(), "postgres", purge.ClientAccessTokens, true); !errors.Is(err, purge.ErrLogin) {
		t.Errorf("a wrong password: %v", err)
	}
}

func TestASessionThatSomebodyCancelsIsNoDeadline(t *testing.T) {
	s := newStage(t, "purge_canceled", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	db.Delay(t, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	var canceler sync.WaitGroup
	canceler.Go(func() {
		other := connect(t, db.name)
		for ctx.Err() == nil {
			other.Exec(t.Context(), "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%DELETE%' AND state = 'active' AND usename = $1", s.role)
			time.Sleep(10 * time.Millisecond)
		}
	})
	defer canceler.Wait()
	defer cancel()
	if r := run(t, s.server(), db.name); r.Status != purge.Failed || !strings.Contains(r.Error, "another session canceled") {
		t.Errorf("%+v", r)
	}
}

// A run lets the batch in hand end; whoever cancels a statement itself ends it.
func TestACanceledStatementReachesTheServer(t *testing.T) {
	s := newStage(t, "purge_gone", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	db.Delay(t, time.Minute)
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	cut, _, err := opened.Cut(t.Context(), opened.Expired(time.Time{}, db.Now(t)), 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	const active = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'purge_gone' AND state = 'active' AND query LIKE '%DELETE%'"
	go func() {
		other := connect(t, db.name)
		for one[int](t, other, active) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	start := time.Now()
	if gone, err := opened.Delete(ctx, cut[0]); gone.Rows != 0 || err == nil || time.Since(start) > 20*time.Second {
		t.Errorf("%d rows, %v after %s", gone.Rows, err, time.Since(start))
	}
	if n := one[int](t, db.conn, active); n != 0 {
		t.Errorf("the server still runs %d statements", n)
	}
}

var quiet = slog.New(slog.DiscardHandler)

var policy = purge.Policy{Action: purge.Purge, BatchSize: 1000}

func target(s Server, databases ...string) purge.Target {
	return purge.Target{Engine: s, Tables: []purge.Table{purge.ClientAccessTokens}, Databases: purge.Select(databases...).Resolve(nil, false), Log: quiet}
}

func run(t *testing.T, s Server, database string) purge.DatabaseResult {
	t.Helper()
	return act(t, s, database, purge.Purge)
}

func act(t *testing.T, s Server, database string, action purge.Action) purge.DatabaseResult {
	t.Helper()
	acting := policy
	acting.Action = action
	return purge.Run(t.Context(), target(s, database), acting, func(purge.DatabaseResult) {}).Databases[0]
}
