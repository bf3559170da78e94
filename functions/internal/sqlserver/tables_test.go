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

// estate is a database with all tables, of which the login has rights on those named.
func estate(t *testing.T, s stage, tables ...string) database {
	t.Helper()
	db := s.create(t)
	for _, create := range otherTables {
		must(t, db.conn, create)
	}
	script, err := os.ReadFile("../../../infra/sqlserver/tables.sql")
	if err != nil {
		t.Fatal(err)
	}
	if err := edfi.ExecBatches(t.Context(), db.conn, strings.NewReplacer("edfi_token_purge", s.login, "$(TABLES)", strings.Join(tables, ",")).Replace(string(script))); err != nil {
		t.Fatal(err)
	}
	return db
}

// insertAt adds rows whose times lie so long after the server's clock.
func insertAt(t *testing.T, db database, table purge.Table, after ...time.Duration) {
	t.Helper()
	for _, d := range after {
		key, value := "", ""
		if table.Name == purge.ClientAccessTokens.Name {
			key, value = "Id, ", "NEWID(), "
		}
		must(t, db.conn, fmt.Sprintf("INSERT INTO %s (%s%s) VALUES (%sDATEADD(second, %d, GETUTCDATE()))", table, key, table.Expiration, value, int(d.Seconds())))
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
	goes := map[string][]time.Duration{ // before, and after, the latest that goes
		purge.ClientAccessTokens.Name:    {-10 * time.Second, 10 * time.Second},
		purge.AdminTokens.Name:           {-310 * time.Second, -290 * time.Second},
		purge.ConfigurationTokens.Name:   {-310 * time.Second, -290 * time.Second},
		purge.ClientAccessTokenLogs.Name: {-purge.DefaultRetention - 10*time.Second, -purge.DefaultRetention + 10*time.Second},
	}
	db := estate(t, s, purge.TableNames()...)
	for _, table := range purge.Tables() {
		insertAt(t, db, table, goes[table.Name]...)
		insertAt(t, db, table, -5*365*24*time.Hour, 24*time.Hour)
	}
	must(t, db.conn, "UPDATE adminapi.Tokens SET ExpirationDate = NULL WHERE ExpirationDate > DATEADD(hour, 1, GETUTCDATE())") // never goes
	for i, table := range purge.Tables() {
		if r := runTables(t, s.server(), db, table); r.Status != purge.Complete || r.DeletedRows != 2 {
			t.Errorf("%s: %+v", table, r)
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

// Chicago's clock is put back on 2026-11-01 at 2:00, 7:00 in UTC, to 1:00, and Bogota's,
// which shows the same in summer, never is.
func TestAClockThatWillBePutBackCountsAsWhatItWillShow(t *testing.T) {
	needServer(t)
	master := connect(t, "master")
	for _, c := range []struct{ now, zones, want string }{
		{"2026-11-01T00:30:00-05:00", "Central Standard Time", "2026-11-01T00:30:00"},
		{"2026-11-01T01:10:00-05:00", "Central Standard Time", "2026-11-01T01:00:00"},
		{"2026-11-01T01:59:59-05:00", "Central Standard Time", "2026-11-01T01:00:00"},
		{"2026-11-01T01:59:59-05:00", "SA Pacific Standard Time", "2026-11-01T01:59:59"},
		{"2026-11-01T01:59:59-05:00", "SA Pacific Standard Time,Central Standard Time", "2026-11-01T01:00:00"},
		{"2026-11-01T01:10:00-06:00", "Central Standard Time", "2026-11-01T01:10:00"},
		{"2026-03-08T01:50:00-06:00", "Central Standard Time", "2026-03-08T01:50:00"},
		{"2026-11-01T01:50:00-05:00", "", "2026-11-01T00:50:00"}, // no zone has the offset
		{"2026-10-25T02:50:00+02:00", "W. Europe Standard Time", "2026-10-25T00:50:00"},
		{"2026-11-01T06:30:00+00:00", "UTC", "2026-11-01T06:30:00"},
	} {
		offset := c.now[len(c.now)-len("+00:00"):]
		zones := []string{"SELECT N'UTC' AS name, N'+99:00' AS current_utc_offset"}
		for _, zone := range strings.FieldsFunc(c.zones, func(r rune) bool { return r == ',' }) {
			zones = append(zones, "SELECT "+quote(zone)+", "+quote(offset))
		}
		statement := strings.NewReplacer(sqlClockNow, "DECLARE @now datetimeoffset = "+quote(c.now)+";",
			"sys.time_zone_info", "("+strings.Join(zones, " UNION ALL ")+") AS zones").Replace(sqlLocalClock)
		if got := one[time.Time](t, master, statement).Format("2006-01-02T15:04:05"); got != c.want {
			t.Errorf("at %s in %q the earliest clock shows %s, want %s", c.now, c.zones, got, c.want)
		}
	}
}

func TestTheTablesOfADatabaseShareItsResult(t *testing.T) {
	s := newStage(t, "purge_estate")
	db := estate(t, s, purge.TableNames()...)
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
	db := estate(t, s, purge.ClientAccessTokens.Name, purge.AdminTokens.Name)
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
	db := estate(t, s, purge.AdminTokens.Name)
	must(t, db.conn, `INSERT INTO adminapi.Tokens (ExpirationDate, Payload)
SELECT TOP (20000) DATEADD(second, -400 - ROW_NUMBER() OVER (ORDER BY a.name), GETUTCDATE()), REPLICATE(N'x', 100)
FROM sys.all_columns AS a CROSS JOIN sys.all_columns AS b`)
	insertAt(t, db, purge.AdminTokens, time.Hour)
	r := runTables(t, s.server(), db, purge.AdminTokens)
	if r.Status != purge.Complete || r.DeletedRows != 20000 || one[int](t, db.conn, "SELECT COUNT(*) FROM adminapi.Tokens") != 1 {
		t.Errorf("%+v", r)
	}
}
