package sqlserver

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// The tables beside ClientAccessTokens, as their products have them.
var otherTables = []string{
	"CREATE SCHEMA adminapi",
	"CREATE TABLE adminapi.Tokens (Id int IDENTITY PRIMARY KEY, ExpirationDate datetime NULL, Payload nvarchar(max) NULL)",
	"CREATE SCHEMA dmscs",
	"CREATE TABLE dmscs.OpenIddictToken (Id uniqueidentifier NOT NULL DEFAULT NEWID() PRIMARY KEY, ExpirationDate datetime2 NULL, Payload nvarchar(max) NULL)",
	"CREATE INDEX IX_OpenIddictToken_ExpirationDate ON dmscs.OpenIddictToken (ExpirationDate)",
	"CREATE TABLE dbo.ClientAccessTokenLogs (LogId bigint IDENTITY PRIMARY KEY, TokenId uniqueidentifier NOT NULL DEFAULT NEWID(), AccessTime datetime2 NOT NULL)",
	"CREATE INDEX IX_ClientAccessTokenLogs_AccessTime ON dbo.ClientAccessTokenLogs (AccessTime)",
}

// columns are the types of their columns of expirations, and what an UPDATE may change to
// lock a row.
var columns = map[string]struct{ typeName, other string }{
	purge.ClientAccessTokens.Name:    {typeDatetime, "Scope = N'locked'"},
	purge.AdminTokens.Name:           {typeDatetime, "Payload = N'locked'"},
	purge.ConfigurationTokens.Name:   {typeDatetime2, "Payload = N'locked'"},
	purge.ClientAccessTokenLogs.Name: {typeDatetime2, "TokenId = NEWID()"},
}

// estate is a database with all tables, of which the login has rights on those given. It
// stands for the first of them.
func estate(t testing.TB, s stage, tables ...purge.Table) database {
	t.Helper()
	db := s.create(t)
	for _, create := range otherTables {
		must(t, db.conn, create)
	}
	script, err := os.ReadFile("../../../infra/sqlserver/tables.sql")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, table := range tables {
		names = append(names, table.Name)
	}
	if err := edfi.ExecBatches(t.Context(), db.conn, strings.NewReplacer("edfi_token_purge", s.login, "$(TABLES)", strings.Join(names, ",")).Replace(string(script))); err != nil {
		t.Fatal(err)
	}
	db.table = tables[0]
	return db
}

// into begins an INSERT of rows for all times that a FROM has as moment.
func into(table purge.Table) string {
	if table.Name == purge.ClientAccessTokens.Name { // its key has no default
		return fmt.Sprintf("INSERT INTO %s (Id, %s) SELECT NEWID(), moment FROM ", table, table.Expiration)
	}
	return fmt.Sprintf("INSERT INTO %s (%s) SELECT moment FROM ", table, table.Expiration)
}

// insertAt adds rows whose times lie so long after the server's clock.
func insertAt(t *testing.T, db database, table purge.Table, after ...time.Duration) {
	t.Helper()
	for _, d := range after {
		must(t, db.conn, fmt.Sprintf("%s(VALUES (DATEADD(second, %d, GETUTCDATE()))) AS given (moment)", into(table), int(d.Seconds())))
	}
}

func runTables(t *testing.T, s Server, db database, tables ...purge.Table) purge.DatabaseResult {
	t.Helper()
	to := target(s, db.name)
	to.Tables = tables
	return purge.Run(t.Context(), to, policy, func(purge.DatabaseResult) {}).Databases[0]
}

func TestEachTableIsPurgedByItsOwnRuleAndNoOtherIsTouched(t *testing.T) {
	s := newStage(t, "purge_tables")
	const days = 24 * time.Hour
	keeps := map[string]time.Duration{ // after the time in the column
		purge.ClientAccessTokens.Name:    0,
		purge.AdminTokens.Name:           5 * time.Minute,
		purge.ConfigurationTokens.Name:   5 * time.Minute,
		purge.ClientAccessTokenLogs.Name: 90 * days,
	}
	db := estate(t, s, purge.Tables()...)
	for _, table := range purge.Tables() {
		insertAt(t, db, table, -keeps[table.Name]-time.Second, -keeps[table.Name]/2+time.Hour, -5*365*days, days)
	}
	must(t, db.conn, "UPDATE adminapi.Tokens SET ExpirationDate = NULL WHERE ExpirationDate > DATEADD(hour, 1, GETUTCDATE())") // never goes
	for i, table := range purge.Tables() {
		before := db.Now(t)
		r := runTables(t, s.server(), db, table)
		if r.Status != purge.Complete || r.DeletedRows != 2 {
			t.Errorf("%s: %+v", table, r)
		}
		const rounding = 10 * time.Millisecond
		if clock := r.Cutoff.Add(keeps[table.Name]); clock.Before(before.Add(-rounding)) || clock.After(db.Now(t).Add(rounding)) {
			t.Errorf("%s, between %s and %s: a cut-off of %s", table, before, db.Now(t), r.Cutoff)
		}
		for j, other := range purge.Tables() {
			want := 4
			if j <= i {
				want = 2
			}
			if got := one[int](t, db.conn, "SELECT COUNT(*) FROM "+other.String()); got != want {
				t.Errorf("%s purged: %s has %d rows, not %d", table, other, got, want)
			}
		}
	}
}

func TestTheTablesOfADatabaseShareItsResult(t *testing.T) {
	s := newStage(t, "purge_estate")
	db := estate(t, s, purge.Tables()...)
	for _, table := range purge.Tables() {
		insertAt(t, db, table, -purge.DefaultRetention-time.Hour, -purge.DefaultRetention-2*time.Hour)
	}
	r := runTables(t, s.server(), db, purge.Tables()...)
	if r.Status != purge.Complete || r.DeletedRows != 8 || len(r.Tables) != 4 || *r.OldestExpiredAge() != 0 {
		t.Errorf("%+v", r)
	}
	must(t, db.conn, "DROP TABLE dbo.ClientAccessTokenLogs")
	must(t, db.conn, "REVOKE DELETE ON adminapi.Tokens FROM "+s.login+"r")
	for _, table := range purge.Tables()[:3] {
		insertAt(t, db, table, -time.Hour)
	}
	r = runTables(t, s.server(), db, purge.Tables()...)
	if r.Status != purge.Failed || r.DeletedRows != 2 || len(r.Tables) != 3 || !strings.Contains(r.Error, "adminapi.Tokens: ") {
		t.Errorf("%+v", r)
	}
}

func TestACheckTellsOfTablesThatNobodyAskedFor(t *testing.T) {
	s := newStage(t, "purge_survey")
	db := estate(t, s, purge.ClientAccessTokens, purge.AdminTokens)
	must(t, db.conn, "INSERT INTO adminapi.Tokens (ExpirationDate) VALUES ('2024-05-06')")
	to, p := target(s.server(), db.name), policy
	p.Action = purge.Check
	r := purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]
	if text := fmt.Sprint(r.Findings); !strings.Contains(text, "unwatched-table") || !strings.Contains(text, "the oldest of 2024-05-06") || !strings.Contains(text, "ClientAccessTokens,adminapi.Tokens") {
		t.Errorf("%+v", r)
	}
}

// Keys that are numbers tell rows apart where no index finds expirations.
func TestManyTokensWithoutAnIndexGoByRangesOfTheirKey(t *testing.T) {
	s := newStage(t, "purge_numbers")
	db := estate(t, s, purge.AdminTokens)
	must(t, db.conn, `INSERT INTO adminapi.Tokens (ExpirationDate, Payload)
SELECT TOP (20000) DATEADD(second, -400 - ROW_NUMBER() OVER (ORDER BY a.name), GETUTCDATE()), REPLICATE(N'x', 100)
FROM sys.all_columns AS a CROSS JOIN sys.all_columns AS b`)
	insertAt(t, db, purge.AdminTokens, time.Hour)
	r := runTables(t, s.server(), db, purge.AdminTokens)
	if r.Status != purge.Complete || r.DeletedRows != 20000 || one[int](t, db.conn, "SELECT COUNT(*) FROM adminapi.Tokens") != 1 {
		t.Errorf("%+v", r)
	}
}
