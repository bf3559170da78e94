package sqlserver

import (
	"context"
	"crypto/tls"
	"database/sql"
	"flag"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/microsoft/go-mssqldb/msdsn"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/purge/purgetest"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// address is the server of TEST_SQLSERVER_URL, or nil.
var address *url.URL

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if address, err = edfi.SQLServer(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if address != nil { // each session makes a server on the same machine compile for a second
		flag.Set("test.parallel", "3") //nolint:errcheck // it is a number
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	s := newStage(t, "edfi_token_purge")
	s.create(t) // and with it the login, for the case that needs no database
	purgetest.Run(t, s)
	for _, table := range purge.Tables()[1:] {
		t.Run(table.Name, func(t *testing.T) { purgetest.RunTable(t, s, table) })
	}
}

func TestTheRoleIsEnoughAndCanBeRunAgain(t *testing.T) {
	s := newStage(t, "edfi_token_purge_again")
	db := s.create(t)
	must(t, db.conn, "REVOKE DELETE ON dbo.ClientAccessTokens FROM "+s.login+"r")
	db.grant(t)
	db.Insert(t, time.Now().Add(-time.Hour))
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
		t.Errorf("%+v", r)
	}
}

func TestNoStatementDeletesMoreThanItsBatch(t *testing.T) {
	s := newStage(t, "edfi_token_purge_batch")
	for _, index := range []bool{true, false} {
		db := s.create(t)
		if !index {
			db.DropIndex(t)
		}
		at := db.Now(t).Add(-time.Hour)
		db.Insert(t, at, at.Add(time.Minute), at.Add(2*time.Minute))
		conn, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var batches []purge.Batch
		for left := conn.Expired(time.Time{}, db.Now(t)); left != nil; {
			var cut []purge.Batch
			if cut, left, err = conn.Cut(t.Context(), left, 3, 1); err != nil {
				t.Fatal(err)
			}
			batches = append(batches, cut...)
		}
		if index && len(batches) != 1 {
			t.Fatal(batches)
		}
		db.Insert(t, spread(10, at.Add(time.Second))...) // behind its back
		var sum int64
		for _, b := range batches {
			deleted, err := conn.Delete(t.Context(), b)
			if sum += deleted.Rows; deleted.Rows > 3 || err != nil {
				t.Errorf("index %t: %d rows deleted, %v", index, deleted.Rows, err)
			}
		}
		if left := len(db.Expirations(t)); int64(left) != 13-sum || sum < 3 {
			t.Errorf("index %t: %d rows are left of 13, %d were deleted", index, left, sum)
		}
	}
}

func spread(n int, from time.Time) (all []time.Time) {
	for i := range n {
		all = append(all, from.Add(time.Duration(i)*time.Second))
	}
	return all
}

// stage implements [purgetest.Server] for one login.
type stage struct{ login string }

const password = `P@ss1;'"word /?#`

func needServer(t *testing.T) {
	t.Helper()
	if address == nil {
		t.Skip("SQL SERVER IS NOT TESTED: TEST_SQLSERVER_URL is not set; make test-sqlserver starts a server with Docker")
	}
}

func newStage(t *testing.T, login string) stage {
	t.Helper()
	needServer(t)
	login = fmt.Sprintf("%s_%x", login, started)
	t.Cleanup(func() {
		master := connect(t, "master")
		var err error
		for range 1500 { // a session ends some time after its client has left
			if _, err = master.Exec("DROP LOGIN " + login); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error(err)
	})
	return stage{login}
}

func (s stage) Engine() purge.Engine { return s.server() }

func (s stage) server() Server {
	config, err := msdsn.Parse(address.String())
	if err != nil {
		panic(err)
	}
	var encrypt *tls.Config
	if config.Encryption != msdsn.EncryptionDisabled {
		encrypt = config.TLSConfig
	}
	return Server{
		Host: config.Host, Port: uint16(config.Port),
		User: redact.NewSecret(s.login), Password: redact.NewSecret(password),
		TLS: encrypt, LockTimeout: 300 * time.Millisecond,
	}
}

// admin is the same for a login that sees every trigger and key.
func (s stage) admin() Server {
	there := s.server()
	there.User = redact.NewSecret(address.User.Username())
	word, _ := address.User.Password()
	there.Password = redact.NewSecret(word)
	return there
}

func (s stage) Local(table purge.Table) bool { return table.Local }

// Tick is what lies between a full second and the next datetime, or datetime2 on any
// server.
func (s stage) Tick(table purge.Table) time.Duration {
	if columns[table.Name].typeName == typeDatetime2 {
		return babelfishTick
	}
	return 3 * time.Millisecond
}

var (
	started = time.Now().UnixMilli() // what an earlier run left behind has another name
	created atomic.Int64
	// creating lets one database come or go at a time: some servers can do no more.
	creating sync.Mutex
)

func (s stage) Create(t testing.TB, table purge.Table) purgetest.Database {
	if table.Name == purge.ClientAccessTokens.Name {
		return s.create(t)
	}
	return estate(t, s, table)
}

func (s stage) create(t testing.TB) database {
	t.Helper()
	name := fmt.Sprintf("EdFi_Admin_%x_%d", started, created.Add(1))
	creating.Lock()
	defer creating.Unlock()
	conn, err := edfi.CreateSQLServerDatabase(t.Context(), address, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		creating.Lock()
		defer creating.Unlock()
		if err := edfi.DropSQLServerDatabase(context.Background(), address, name); err != nil {
			t.Error(err)
		}
	})
	db := database{name: name, login: s.login, conn: conn, table: purge.ClientAccessTokens}
	db.grant(t)
	return db
}

// grant runs infra/sqlserver/role.sql.
func (d database) grant(t testing.TB) {
	t.Helper()
	role, err := os.ReadFile("../../../infra/sqlserver/role.sql")
	if err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer("edfi_token_purge", d.login, "$(PURGE_PASSWORD)", strings.ReplaceAll(password, "'", "''")).Replace(string(role))
	if err := edfi.ExecBatches(t.Context(), d.conn, script); err != nil {
		t.Fatal(err)
	}
}

// database implements [purgetest.Database].
type database struct {
	name, login string
	conn        *sql.DB
	table       purge.Table
}

// facts are those of its table that matter to a statement.
func (d database) facts() facts {
	return facts{table: d.table, typeName: columns[d.table.Name].typeName}
}

// on returns sql for the database's table.
func (d database) on(statement string) string { return d.facts().on(statement) }

func (d database) Name() string { return d.name }

func (d database) Insert(t testing.TB, expirations ...time.Time) {
	t.Helper()
	for len(expirations) > 0 {
		n := min(len(expirations), 1000)
		values, args := make([]string, n), make([]any, n)
		for i, at := range expirations[:n] {
			values[i], args[i] = fmt.Sprintf("(@p%d)", i+1), d.facts().instant(at.UTC())
		}
		must(t, d.conn, into(d.table)+"(VALUES "+strings.Join(values, ", ")+") AS given (moment)", args...)
		expirations = expirations[n:]
	}
}

func (d database) Expirations(t testing.TB) []time.Time {
	t.Helper()
	return column[time.Time](t, d.conn, d.on("SELECT {expiration} FROM {table} ORDER BY {expiration}"))
}

func (d database) Now(t testing.TB) time.Time {
	return one[time.Time](t, d.conn, "SELECT GETUTCDATE()")
}

func (d database) SetTimeZone(testing.TB, string) bool { return false }

func (d database) DropIndex(t testing.TB) {
	if d.table.Name != purge.AdminTokens.Name { // which has none
		must(t, d.conn, d.on("DROP INDEX IX_{relation}_{expiration} ON {table}"))
	}
}
func (d database) DropTable(t testing.TB) { must(t, d.conn, d.on("DROP TABLE {table}")) }

func (d database) Revoke(t testing.TB, right string) (code string) {
	must(t, d.conn, d.on("REVOKE "+right+" ON {table} FROM ")+d.login+"r") // the role's
	return "no-" + strings.ToLower(right) + "-right"
}

func (d database) Record(t testing.TB) func() []int {
	must(t, d.conn, "CREATE TABLE dbo.Statements (deleted int)")
	must(t, d.conn, "GRANT INSERT ON dbo.Statements TO "+d.login)
	// With counts and results of its own, which must not be taken for the batch's.
	must(t, d.conn, d.on(`
CREATE TRIGGER {schema}.Record ON {table} AFTER DELETE AS
BEGIN
    SET NOCOUNT OFF;
    INSERT INTO dbo.Statements SELECT COUNT(*) FROM deleted;
    SELECT 4711 AS deleted UNION ALL SELECT 4712;
END`))
	return func() []int { return column[int](t, d.conn, "SELECT deleted FROM dbo.Statements") }
}

func (d database) Lock(t testing.TB, expiration time.Time) func() {
	tx, err := d.conn.BeginTx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	locked, err := tx.Exec(d.on("UPDATE {table} SET "+columns[d.table.Name].other+" WHERE {expiration} = @p1"), d.facts().instant(expiration.UTC()))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := locked.RowsAffected(); n == 0 {
		t.Fatal("no row locked")
	}
	return func() { tx.Rollback() } //nolint:errcheck // once is enough
}

func (d database) Delay(t testing.TB, perRow time.Duration) {
	wait := `DECLARE @delay datetime = DATEADD(millisecond, @ms, 0); WAITFOR DELAY @delay`
	if d.onBabelfish(t) { // it knows no WAITFOR
		wait = `DECLARE @x int; SELECT @x = 1 FROM pg_sleep(@ms / 1000.0)`
	}
	must(t, d.conn, fmt.Sprintf(d.on(`
CREATE TRIGGER {schema}.Delay ON {table} AFTER DELETE AS
BEGIN
    DECLARE @ms int = %d * (SELECT COUNT(*) FROM deleted);
    %s;
END`), perRow.Milliseconds(), wait))
}

func (d database) onBabelfish(t testing.TB) bool {
	return strings.Contains(one[string](t, d.conn, "SELECT @@VERSION"), "Babelfish")
}

func (d database) Keep(t testing.TB) {
	must(t, d.conn, d.on("CREATE TRIGGER {schema}.Keep ON {table} INSTEAD OF DELETE AS BEGIN DECLARE @x int END"))
}

func (d database) Disconnect(t testing.TB) {
	must(t, d.conn, edfi.KillSessions, sql.Named("database", d.name), sql.Named("login", d.login))
	const sessions = "SELECT COUNT(*) FROM sys.dm_exec_sessions WHERE database_id = DB_ID() AND login_name = "
	for one[int](t, d.conn, sessions+quote(d.login)) > 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

func connect(t testing.TB, database string) *sql.DB {
	t.Helper()
	db, err := edfi.OpenSQLServer(address, database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func must(t testing.TB, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.Exec(statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func one[T any](t testing.TB, db *sql.DB, query string) T {
	t.Helper()
	var v T
	if err := db.QueryRow(query).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func column[T any](t testing.TB, db *sql.DB, query string, args ...any) (all []T) {
	t.Helper()
	rows, err := db.Query(query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func quote(s string) string { return "N'" + strings.ReplaceAll(s, "'", "''") + "'" }

var quiet = slog.New(slog.DiscardHandler)

var policy = purge.Policy{Action: purge.Purge, BatchSize: 1000}

func target(s Server, databases ...string) purge.Target {
	return purge.Target{Engine: s, Tables: []purge.Table{purge.ClientAccessTokens}, Databases: purge.Select(databases...).Resolve(nil, false), Log: quiet}
}

func run(t *testing.T, s Server, database string) purge.DatabaseResult {
	t.Helper()
	return purge.Run(t.Context(), target(s, database), policy, func(purge.DatabaseResult) {}).Databases[0]
}

// found tells whether a result has a finding.
func found(r purge.DatabaseResult, code string) bool {
	return slices.ContainsFunc(r.Findings, func(f purge.Finding) bool { return f.Code == code })
}

// The statements that the findings hold are those that mend.
func TestWhatAFindingSaysMends(t *testing.T) {
	s := newStage(t, "purge_mended")
	admin := s.admin()
	for code, stage := range map[string][]string{
		"delete-trigger":           {"CREATE TRIGGER dbo.[Keep it] ON dbo.ClientAccessTokens INSTEAD OF DELETE AS BEGIN DECLARE @x int END"},
		"referenced":               {"CREATE TABLE dbo.[Logs of it] (Id uniqueidentifier CONSTRAINT [of token] REFERENCES dbo.ClientAccessTokens (Id))", "INSERT INTO dbo.[Logs of it] SELECT Id FROM dbo.ClientAccessTokens"},
		"missing-expiration-index": {"DROP INDEX IX_ClientAccessTokens_Expiration ON dbo.ClientAccessTokens"},
	} {
		db := s.create(t)
		db.Insert(t, db.Now(t).Add(-time.Hour))
		for _, statement := range stage {
			must(t, db.conn, statement)
		}
		found, _ := check(t, admin, db.name)
		mend := regexp.MustCompile(`(ALTER|CREATE) .*?;`).FindString(found[code])
		if mend == "" {
			t.Errorf("no statement for %s in %q", code, found)
			continue
		}
		must(t, db.conn, mend)
		mended, status := check(t, admin, db.name)
		if left, ok := mended[code]; ok || status != purge.Complete {
			t.Errorf("%q leaves %s, %+v", mend, left, mended)
		}
		if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
			t.Errorf("after %q: %+v", mend, r)
		}
	}
}

// check returns the messages of a check by their codes.
func check(t *testing.T, s Server, database string) (messages map[string]string, status purge.Status) {
	t.Helper()
	checked := policy
	checked.Action = purge.Check
	r := purge.Run(t.Context(), target(s, database), checked, func(purge.DatabaseResult) {}).Databases[0]
	messages = map[string]string{}
	for _, f := range r.Findings {
		messages[f.Code] = f.Message
	}
	return messages, r.Status
}
