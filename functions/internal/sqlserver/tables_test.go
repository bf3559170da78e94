package sqlserver

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// columns are the types of the tables' columns of expirations, and what an UPDATE may
// change to lock a row.
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
	if err := edfi.CreateOtherSQLServerTables(t.Context(), db.conn); err != nil {
		t.Fatal(err)
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

// Chicago's clock is put back on 2026-11-01 at 2:00, 7:00 in UTC, to 1:00, and forward on
// 2026-03-08 at 2:00, 8:00 in UTC, to 3:00. Bogota's, which shows the same in summer, is
// never set. Tokens are accepted for five minutes after they expire.
func TestAClockThatIsSetCountsAsTheEarliestThatItShows(t *testing.T) {
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
		{"2026-03-08T03:04:00-05:00", "Central Standard Time", "2026-03-08T02:04:00"},
		{"2026-03-08T03:06:00-05:00", "Central Standard Time", "2026-03-08T03:06:00"},
		{"2026-03-08T03:04:00-05:00", "SA Pacific Standard Time", "2026-03-08T03:04:00"},
		{"2026-11-01T01:50:00-05:00", "", "2026-11-01T00:50:00"}, // no zone has the offset
		{"2026-10-25T02:50:00+02:00", "W. Europe Standard Time", "2026-10-25T00:50:00"},
		{"2026-11-01T06:30:00+00:00", "UTC", "2026-11-01T06:30:00"},
	} {
		offset := c.now[len(c.now)-len("+00:00"):]
		zones := []string{"SELECT N'UTC' AS name, N'+99:00' AS current_utc_offset"}
		for _, zone := range strings.FieldsFunc(c.zones, func(r rune) bool { return r == ',' }) {
			zones = append(zones, "SELECT "+quote(zone)+", "+quote(offset))
		}
		statement := strings.NewReplacer(sqlClockNow, "DECLARE @accepted int = 300, @now datetimeoffset = "+quote(c.now)+";",
			"sys.time_zone_info", "("+strings.Join(zones, " UNION ALL ")+") AS zones").Replace(sqlLocalClock)
		if got := one[time.Time](t, master, statement).Format("2006-01-02T15:04:05"); got != c.want {
			t.Errorf("at %s in %q the earliest clock shows %s, want %s", c.now, c.zones, got, c.want)
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

// fill adds n rows to a table: of ten rows one still lives, one has no expiration where
// the column lets it, and seven share an expiration. Those that must stay are copied to
// dbo.kept_ and the table's name.
func fill(t *testing.T, db database, table purge.Table, n int) {
	t.Helper()
	const chunk = 10_000
	columns, values, never := "", "", 11
	switch table {
	case purge.ClientAccessTokens:
		columns, values = "Id, ", "NEWID(), "
	case purge.AdminTokens, purge.ConfigurationTokens:
		never = 5
	}
	ago := int((table.Grace + table.Retention).Seconds())
	for from := 0; from < n; from += chunk {
		must(t, db.conn, fmt.Sprintf(`
WITH ten AS (SELECT n FROM (VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)) AS t (n)),
     number AS (SELECT %d + a.n + 10 * b.n + 100 * c.n + 1000 * d.n AS n FROM ten AS a, ten AS b, ten AS c, ten AS d)
INSERT INTO %s (%s%s)
SELECT %sCASE n %% 10 WHEN 0 THEN DATEADD(second, 3600 + n / 7 - %d, GETUTCDATE())
                     WHEN %d THEN NULL
                     ELSE DATEADD(second, -60 - n / 7 - %[6]d, GETUTCDATE()) END
FROM number WHERE n < %[8]d`, from, table, columns, table.Expiration, values, ago, never, n))
	}
	must(t, db.conn, fmt.Sprintf("SELECT %s INTO dbo.kept_%s FROM %s WHERE %s IS NULL OR %[4]s > DATEADD(second, -%d, GETUTCDATE())", table.Key, table.Relation, table, table.Expiration, ago))
}

// With TABLE_ROWS in the environment there are so many rows in each table.
func TestEachOfManyRowsGoesOrStaysAsItsTableSays(t *testing.T) {
	s := newStage(t, "purge_rows")
	n := 2000
	if text := os.Getenv("TABLE_ROWS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 100 {
			t.Fatal("TABLE_ROWS: must be a number of rows, at least 100")
		}
	}
	db := estate(t, s, purge.Tables()...)
	start := time.Now()
	stay := map[string]int{}
	for _, table := range purge.Tables() {
		fill(t, db, table, n)
		stay[table.Name] = one[int](t, db.conn, "SELECT COUNT(*) FROM dbo.kept_"+table.Relation)
	}
	t.Logf("%d rows in each table, made in %s", n, time.Since(start).Round(time.Second))
	to, p := target(s.server(), db.name), purge.Policy{Action: purge.Purge, BatchSize: DefaultBatch} // whole batches on slow machines, too
	for i, table := range purge.Tables() {
		to.Tables = []purge.Table{table}
		start := time.Now()
		r := purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]
		t.Logf("%s: %d rows in %d batches, %s", table, r.DeletedRows, r.Batches, time.Since(start).Round(time.Millisecond))
		if r.Status != purge.Complete || r.DeletedRows != int64(n-stay[table.Name]) || *r.OldestExpiredAge() != 0 {
			t.Errorf("%s: %+v", table, r)
		}
		for j, other := range purge.Tables() {
			want := n
			if j <= i {
				want = stay[other.Name]
			}
			if got := one[int](t, db.conn, "SELECT COUNT(*) FROM "+other.String()); got != want {
				t.Errorf("%s purged: %s has %d rows, not %d", table, other, got, want)
			}
		}
		lost := one[int](t, db.conn, fmt.Sprintf("SELECT COUNT(*) FROM dbo.kept_%s AS kept LEFT JOIN %s AS token ON token.%s = kept.%[3]s WHERE token.%[3]s IS NULL", table.Relation, table, table.Key))
		if stay[table.Name] < n/10 || lost > 0 {
			t.Errorf("%s: of %d rows that must stay %d have gone", table, stay[table.Name], lost)
		}
	}
}

// odd is where a key has something that a check tells.
type odd int

const (
	none      odd = iota
	unindexed     // where no index finds expirations, none finds keys
	always
)

// Where its key does not tell rows apart, or is none, a table of tokens is purged all the
// same; without the column that Ed-Fi's key is, that is told.
func TestTokensGoWhateverTheirKeyIs(t *testing.T) {
	s := newStage(t, "purge_keys")
	const guid, few = "Id uniqueidentifier NOT NULL", "CAST('00000000-0000-0000-0000-00000000000' + CAST(n % 4 AS varchar(1)) AS uniqueidentifier)"
	for name, c := range map[string]struct {
		definition, columns, values string
		odd                         odd    // a check tells
		want                        string // the error
	}{
		"two columns":             {guid + ", Part int NOT NULL, PRIMARY KEY (Id, Part)", "Id, Part", "NEWID(), n % 3", none, ""},
		"two columns, shared Ids": {guid + ", Part int NOT NULL, PRIMARY KEY (Id, Part)", "Id, Part", few + ", n", none, ""},
		"two columns, Id last":    {guid + ", Part int NOT NULL, PRIMARY KEY (Part, Id)", "Id, Part", "NEWID(), n", unindexed, ""},
		"a number":                {"Id int NOT NULL PRIMARY KEY", "Id", "n", none, ""},
		"a large number":          {"Id bigint NOT NULL PRIMARY KEY", "Id", "4000000000 + n", none, ""},
		"a text":                  {"Id nvarchar(50) NOT NULL PRIMARY KEY", "Id", "CAST(n AS nvarchar(50))", always, ""},
		"a text, shared":          {"Id nvarchar(50) NOT NULL", "Id", "CAST(n % 4 AS nvarchar(50))", always, ""},
		"another column":          {guid + ", Number int NOT NULL PRIMARY KEY", "Id, Number", "NEWID(), n", unindexed, ""},
		"none":                    {guid, "Id", "NEWID()", unindexed, ""},
		"none, shared Ids":        {"Id int NOT NULL", "Id", "n % 4", unindexed, ""},
		"no Id":                   {"Token uniqueidentifier NOT NULL PRIMARY KEY", "Token", "NEWID()", none, "no column Id"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, indexed := range []bool{true, false} {
				db := s.create(t)
				db.DropTable(t)
				must(t, db.conn, "CREATE TABLE dbo.ClientAccessTokens (Expiration datetime NOT NULL, "+c.definition+")")
				must(t, db.conn, "GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO "+s.login)
				if indexed {
					must(t, db.conn, "CREATE INDEX IX_ClientAccessTokens_Expiration ON dbo.ClientAccessTokens (Expiration)")
				}
				// Of 200 rows 50 live, 70 share one expiration, and 80 have their own.
				must(t, db.conn, `
DECLARE @now datetime = GETUTCDATE();
WITH ten AS (SELECT n FROM (VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)) AS t (n)),
     number AS (SELECT a.n + 10 * b.n + 100 * c.n AS n FROM ten AS a, ten AS b, ten AS c)
INSERT INTO dbo.ClientAccessTokens (Expiration, `+c.columns+`)
SELECT DATEADD(second, CASE WHEN n % 4 = 0 THEN 600 + n WHEN n < 93 THEN -600 ELSE -700 - n END, @now), `+c.values+` FROM number WHERE n < 200`)
				tied := one[int](t, db.conn, "SELECT MAX(n) FROM (SELECT COUNT(*) AS n FROM dbo.ClientAccessTokens GROUP BY Expiration) AS counts")
				found, status := check(t, s.server(), db.name)
				if _, told := found["odd-key"]; told != (c.odd == always || c.odd == unindexed && !indexed) || (status == purge.Complete) != (c.want == "") {
					t.Errorf("indexed %t: a check finds %q", indexed, found)
				}
				r := runWith(t, s.server(), db.name, func(p *purge.Policy) { p.MaxDuration = 5 * time.Minute })
				left := one[int](t, db.conn, "SELECT COUNT(*) FROM dbo.ClientAccessTokens")
				switch {
				case c.want != "":
					if r.Status != purge.Failed || !strings.Contains(r.Error, c.want) || left != 200 {
						t.Errorf("indexed %t: %d are left, %+v", indexed, left, r)
					}
				case r.Status != purge.Complete || r.DeletedRows != 150 || left != 50 || tied < 60:
					t.Errorf("indexed %t: %d are left, %d were tied, %+v", indexed, left, tied, r)
				}
			}
		})
	}
}

// Rows that come last in the index are others' work in any of the tables.
func TestRowsThatComeAreSeenInEachTableWithAnIndex(t *testing.T) {
	s := newStage(t, "purge_sense_tables")
	db := estate(t, s, purge.Tables()...)
	there := s.server()
	there.Memory = new(Memory)
	for _, table := range purge.Tables() {
		insertAt(t, db, table, -time.Hour, 20*time.Minute)
		opened, err := there.Open(t.Context(), db.name, table, false)
		if err != nil {
			t.Fatal(err)
		}
		c := opened.(*conn)
		writes := func() int64 {
			n, err := c.Writes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		writes()
		before := writes()
		insertAt(t, db, table, -time.Hour, 21*time.Minute, 22*time.Minute, 23*time.Minute)
		there.Memory.of(c).looked = time.Now().Add(time.Hour) // just now, however long that took
		want := map[bool]int64{true: 3}[c.facts.indexed]
		if after := writes(); after-before != want || c.facts.indexed == (table.Name == purge.AdminTokens.Name) {
			t.Errorf("%s, indexed %t: %d after %d", table, c.facts.indexed, after, before)
		}
		c.Close()
	}
}

func TestTwoIndexesOnExpirationsAreNoFault(t *testing.T) {
	s := newStage(t, "purge_indexes")
	db := s.create(t)
	must(t, db.conn, "CREATE INDEX Another ON dbo.ClientAccessTokens (Expiration, Id)")
	db.Insert(t, spread(20, db.Now(t).Add(-time.Hour))...)
	if found, status := check(t, s.server(), db.name); status != purge.Complete || found["expiration-index"] == "" {
		t.Errorf("%q, %q", status, found)
	}
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 20 {
		t.Errorf("%+v", r)
	}
}

// Others may have emptied the table since a look found rows.
func TestATableThatIsEmptyByNowHasNothingToCut(t *testing.T) {
	s := newStage(t, "purge_emptied")
	db := estate(t, s, purge.Tables()...)
	db.DropIndex(t)
	for _, table := range purge.Tables() {
		conn, err := s.server().Open(t.Context(), db.name, table, true)
		if err != nil {
			t.Fatal(err)
		}
		rest := conn.Expired(time.Time{}, time.Now())
		for rest != nil && err == nil {
			var cut []purge.Batch
			if cut, rest, err = conn.Cut(t.Context(), rest, 10, 2); err != nil {
				break
			}
			for _, b := range cut {
				if gone, failed := conn.Delete(t.Context(), b); failed != nil || gone.Rows != 0 {
					t.Errorf("%s: %+v, %v", table, gone, failed)
				}
			}
		}
		if err != nil {
			t.Errorf("%s: %v", table, err)
		}
		conn.Close()
	}
}
