package postgres

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

// relation is a table as SQL writes it, with its column of expirations, its key, and the
// index on expirations; "" is none.
type relation struct{ table, column, key, index string }

// relations are those of tables.sql and schema.sql.
var relations = map[string]relation{
	purge.ClientAccessTokens.Name:    {"dbo.clientaccesstokens", "expiration", "id", "dbo.ix_clientaccesstokens_expiration"},
	purge.AdminTokens.Name:           {"adminapi.tokens", "expirationdate", "id", ""},
	purge.ConfigurationTokens.Name:   {`dmscs."OpenIddictToken"`, `"ExpirationDate"`, `"Id"`, `dmscs."IX_OpenIddictToken_ExpirationDate"`},
	purge.ClientAccessTokenLogs.Name: {"dbo.clientaccesstokenlogs", "accesstime", "logid", "dbo.ix_clientaccesstokenlogs_accesstime"},
}

// shape is what other versions make of a table of tables.sql.
type shape struct {
	relation
	make     string
	instants bool // the column has a zone
}

// shapes are those of the configuration service: an early version folds its names, and a
// later one gives the column a zone.
var shapes = map[string]shape{
	"Folded": {relation{"dmscs.openiddicttoken", "expirationdate", "id", "dmscs.ix_openiddicttoken_expirationdate"}, `
DROP TABLE dmscs."OpenIddictToken";
CREATE TABLE dmscs.OpenIddictToken (Id uuid PRIMARY KEY DEFAULT gen_random_uuid(), ExpirationDate timestamp);
CREATE INDEX IX_OpenIddictToken_ExpirationDate ON dmscs.OpenIddictToken (ExpirationDate)`, false},
	"WithZone": {relations[purge.ConfigurationTokens.Name], `
SET TIME ZONE 'UTC'; ALTER TABLE dmscs."OpenIddictToken" ALTER "ExpirationDate" TYPE timestamptz`, true},
}

// estate is a database with all tables, of which the login has rights on those given. It
// stands for the first of them. Its clock is in UTC, whatever the server's is.
func estate(t testing.TB, s stage, tables ...purge.Table) database {
	t.Helper()
	db := s.createEmpty(t)
	if err := edfi.CreateOtherTables(t.Context(), db.conn); err != nil {
		t.Fatal(err)
	}
	must(t, db.conn, s.shape.make)
	var names []string
	for _, table := range tables {
		names = append(names, table.Name)
	}
	must(t, db.conn, "SET "+s.role+".tables = "+quote(strings.Join(names, ",")))
	grant(t, db)
	db.SetTimeZone(t, "UTC")
	db.its = relations[tables[0].Name]
	if s.shape.make != "" {
		db.its = s.shape.relation
	}
	return db
}

// into begins an INSERT of rows for all times that a FROM has as at.
func into(table purge.Table) string { return relations[table.Name].into() }

func (its relation) into() string {
	if its.key == "id" && its.column == "expiration" { // its key has no default
		return fmt.Sprintf("INSERT INTO %s (id, %s) SELECT gen_random_uuid(), at FROM ", its.table, its.column)
	}
	return fmt.Sprintf("INSERT INTO %s (%s) SELECT at FROM ", its.table, its.column)
}

// insertAt adds rows to a table, whose times are what the server's clock in a zone shows,
// and so long after.
func insertAt(t *testing.T, db database, table purge.Table, zone string, after ...time.Duration) {
	t.Helper()
	for _, d := range after {
		must(t, db.conn, into(table)+fmt.Sprintf("(VALUES (now() AT TIME ZONE %s + interval '%d s')) AS row (at)", quote(zone), int(d.Seconds())))
	}
}

func left(t *testing.T, db database, table purge.Table) int {
	t.Helper()
	return one[int](t, db.conn, "SELECT count(*) FROM "+relations[table.Name].table)
}

// runTables purges tables of a database.
func runTables(t *testing.T, s Server, db database, p purge.Policy, tables ...purge.Table) purge.DatabaseResult {
	t.Helper()
	to := target(s, db.name)
	to.Tables = tables
	return purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]
}

func TestEachTableIsPurgedByItsOwnRuleAndNoOtherIsTouched(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_tables", "")
	const days = 24 * time.Hour
	keeps := map[string]time.Duration{ // after the time in the column
		purge.ClientAccessTokens.Name:    0,
		purge.AdminTokens.Name:           5 * time.Minute,
		purge.ConfigurationTokens.Name:   5 * time.Minute,
		purge.ClientAccessTokenLogs.Name: 90 * days,
	}
	for _, table := range purge.Tables() {
		db := estate(t, s, table)
		for _, other := range purge.Tables() {
			insertAt(t, db, other, "UTC", -keeps[other.Name]-time.Second, -keeps[other.Name]/2+time.Hour, -5*365*days, days)
		}
		must(t, db.conn, "UPDATE adminapi.tokens SET expirationdate = NULL WHERE expirationdate > now() + interval '1 h'") // never goes
		p := policy
		p.Action = purge.DryRun
		if r := runTables(t, s.server(), db, p, table); r.ExpiredRows == nil || *r.ExpiredRows != 2 {
			t.Errorf("%s: %+v", table, r)
		}
		before := db.Now(t)
		r := runTables(t, s.server(), db, policy, table)
		if r.Status != purge.Complete || r.DeletedRows != 2 || r.Tables != nil {
			t.Errorf("%s: %+v", table, r)
		}
		if clock := r.Cutoff.Add(keeps[table.Name]); clock.Before(before) || clock.After(db.Now(t)) {
			t.Errorf("%s, between %s and %s: a cut-off of %s", table, before, db.Now(t), r.Cutoff)
		}
		for _, other := range purge.Tables() {
			want := 4
			if other.Name == table.Name {
				want = 2
			}
			if got := left(t, db, other); got != want {
				t.Errorf("%s purged: %s has %d rows, not %d", table, other, got, want)
			}
		}
		p.Action = purge.Check
		if r := runTables(t, s.server(), db, p, table); r.Status != purge.Complete {
			t.Errorf("%s: %+v", table, r)
		}
	}
}

// TABLE_ROWS in each table, half of which have expired: first ClientAccessTokens is purged,
// and the three others are left alone, then all of them.
func TestEachOfManyRowsGoesOrStaysAsItsTableSays(t *testing.T) {
	t.Parallel()
	rows := 2000
	if text := os.Getenv("TABLE_ROWS"); text != "" {
		var err error
		if rows, err = strconv.Atoi(text); err != nil || rows < 1 {
			t.Fatal("TABLE_ROWS: must be a number of rows")
		}
	}
	s := newStage(t, "purge_rows", "")
	db := estate(t, s, purge.Tables()...)
	for _, table := range purge.Tables() { // a second apart, and some that never go
		its := relations[table.Name]
		if _, err := db.conn.Exec(t.Context(), into(table)+"(SELECT $1::timestamp + n * interval '1 s' AS at FROM generate_series(-$2::int / 2 + 1, $2::int / 2) AS n) AS row", table.Cutoff(db.Now(t), 0), rows); err != nil {
			t.Fatal(err)
		}
		if table.Name == purge.AdminTokens.Name || table.Name == purge.ConfigurationTokens.Name {
			must(t, db.conn, into(table)+"(SELECT NULL::timestamp AS at FROM generate_series(1, 10)) AS row")
		}
		must(t, db.conn, fmt.Sprintf("CREATE TABLE public.%s AS SELECT %s AS key, %s AS at FROM %s; ANALYZE %[4]s", copied(table), its.key, its.column, its.table))
	}
	p := purge.Policy{Action: purge.Purge, BatchSize: DefaultBatch, BatchTarget: 50 * time.Millisecond}
	deleted := map[string]int64{}
	for _, asked := range [][]purge.Table{{purge.ClientAccessTokens}, purge.Tables()} {
		r := runTables(t, s.server(), db, p, asked...)
		results := r.Tables
		if results == nil {
			r.Table = asked[0].Name
			results = []purge.DatabaseResult{r}
		}
		if r.Status != purge.Complete || len(results) != len(asked) {
			t.Fatalf("%+v", r)
		}
		cutoffs := map[string]time.Time{}
		for _, its := range results {
			t.Logf("%s: %s rows in %d ms, %d batches", its.Table, purge.Grouped(its.DeletedRows), its.DurationMs, its.Batches)
			deleted[its.Table] += its.DeletedRows
			cutoffs[its.Table] = its.Cutoff.Time
		}
		for _, table := range purge.Tables() {
			if expired, wrong := compare(t, db, table, cutoffs[table.Name]); expired != deleted[table.Name] || wrong != 0 {
				t.Errorf("%s, with %d tables asked for: %d rows had expired, %d deleted, %d are wrong", table, len(asked), expired, deleted[table.Name], wrong)
			}
		}
		if deleted[asked[len(asked)-1].Name] < int64(rows)/2 {
			t.Errorf("%v deleted", deleted)
		}
	}
}

// copied is the name of a copy of a table.
func copied(table purge.Table) string { return "copy_" + strings.ToLower(table.Relation) }

// compare returns how many rows of the copy had expired at a cut-off, zero for none, and
// how many are there that should not be, or not there that should.
func compare(t *testing.T, db database, table purge.Table, cutoff time.Time) (expired, wrong int64) {
	t.Helper()
	its := relations[table.Name]
	err := db.conn.QueryRow(t.Context(), fmt.Sprintf(`
SELECT count(*) FILTER (WHERE at <= $1::timestamp),
       count(*) FILTER (WHERE key IS NULL OR coalesce(at <= $1::timestamp, false) = (there IS NOT NULL))
FROM (SELECT copy.key, copy.at, its.%s AS there FROM public.%s AS copy FULL JOIN %s AS its ON its.%[1]s = copy.key) AS compared`,
		its.key, copied(table), its.table), cutoff).Scan(&expired, &wrong)
	if err != nil {
		t.Fatal(err)
	}
	return expired, wrong
}

func TestTheTablesOfADatabaseShareItsResult(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_estate", "")
	db := estate(t, s, purge.Tables()...)
	for _, table := range purge.Tables() {
		insertAt(t, db, table, "UTC", -purge.DefaultRetention-time.Hour, -purge.DefaultRetention-2*time.Hour)
	}
	r := runTables(t, s.server(), db, policy, purge.Tables()...)
	if r.Status != purge.Complete || r.DeletedRows != 8 || len(r.Tables) != 4 || r.Batches != 4 || *r.OldestExpiredAge() != 0 {
		t.Errorf("%+v", r)
	}

	// One that fails does not stop the others, and one that is not there is none.
	must(t, db.conn, "DROP TABLE dbo.clientaccesstokenlogs; REVOKE DELETE ON adminapi.tokens FROM purge_estate_rights")
	for _, table := range purge.Tables()[:3] {
		insertAt(t, db, table, "UTC", -time.Hour)
	}
	r = runTables(t, s.server(), db, policy, purge.Tables()...)
	if r.Status != purge.Failed || r.DeletedRows != 2 || len(r.Tables) != 3 || !strings.Contains(r.Error, "adminapi.Tokens: ") || !strings.Contains(r.Error, "GRANT USAGE ON SCHEMA adminapi") {
		t.Errorf("%+v", r)
	}
	must(t, db.conn, "DROP TABLE dbo.clientaccesstokens, adminapi.tokens, dmscs.\"OpenIddictToken\"")
	if r = runTables(t, s.server(), db, policy, purge.Tables()...); r.Status != purge.Failed || !strings.Contains(r.Error, "none of the tables") {
		t.Errorf("%+v", r)
	}
}

func TestACheckTellsOfTablesThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_survey", "")
	db := estate(t, s, purge.ClientAccessTokens, purge.ConfigurationTokens)
	must(t, db.conn, "INSERT INTO adminapi.tokens (expirationdate) SELECT now() FROM generate_series(1, 150000); ANALYZE adminapi.tokens")
	must(t, db.conn, `INSERT INTO dmscs."OpenIddictToken" ("ExpirationDate") VALUES ('2024-05-06')`)
	p := policy
	p.Action = purge.Check
	r := runTables(t, s.server(), db, p, purge.ClientAccessTokens)
	for _, want := range []string{"warning unwatched-table", "adminapi.Tokens has about 1", " rows, of unknown age", "OpenIddictToken has few rows, the oldest of 2024-05-06", "TABLES to ClientAccessTokens,adminapi.Tokens,dmscs.OpenIddictToken,ClientAccessTokenLogs"} {
		if !strings.Contains(text(r.Findings), want) {
			t.Errorf("%q is not in %s", want, text(r.Findings))
		}
	}
	if r = runTables(t, s.server(), db, p, purge.Tables()...); strings.Contains(text(r.Findings), "unwatched-table") {
		t.Errorf("%+v", r)
	}
}

func TestManyTokensWithoutAnIndexGoInLinearTime(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_admin_tokens", "")
	db := estate(t, s, purge.AdminTokens)
	must(t, db.conn, "INSERT INTO adminapi.tokens (expirationdate, payload) SELECT now() - interval '2 d' + n * interval '1 s', repeat('x', 2000) FROM generate_series(1, 60000) AS n")
	r := runTables(t, s.server(), db, policy, purge.AdminTokens)
	if r.Status != purge.Complete || r.DeletedRows != 60000 || !strings.Contains(text(r.Findings), "missing-expiration-index") || !strings.Contains(text(r.Findings), "adminapi.tokens") {
		t.Errorf("%+v", r)
	}
}
