package postgres

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
)

// What a check finds on PostgreSQL alone; the suite has the rest.

func TestACheckFindsWhatOnlyPostgreSQLHas(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_check", "")
	const jobs = "GRANT USAGE ON SCHEMA pgagent, cron TO purge_check; GRANT SELECT ON ALL TABLES IN SCHEMA pgagent, cron TO purge_check"
	for name, c := range map[string]struct {
		stage, code, text string
		clean             string // the code instead, before
	}{
		"time zone":    {"ALTER DATABASE %s SET timezone = 'Asia/Tokyo'", "time-zone", "Asia/Tokyo", ""},
		"trigger":      {"CREATE FUNCTION dbo.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'; CREATE TRIGGER audit BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION dbo.f()", "delete-trigger", "audit", ""},
		"rule":         {"CREATE RULE keep AS ON DELETE TO dbo.clientaccesstokens DO INSTEAD NOTHING", "delete-rule", "keep", ""},
		"row security": {"ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY", "row-security", "BYPASSRLS", ""},
		"foreign key":  {"CREATE TABLE dbo.logs (id uuid REFERENCES dbo.clientaccesstokens)", "referenced", "dbo.logs", ""},
		"pgAgent":      {pgAgent + ";" + jobs, "other-cleaner", "pgAgent job expired", "no-other-cleaner"},
		"pg_cron":      {pgCron + ";" + jobs, "other-cleaner", "pg_cron job 1:", "no-other-cleaner"},
		"unseen jobs":  {pgAgent, "", "", "no-other-cleaner"},
	} {
		db := s.create(t)
		before := check(t, s, db.name)
		if slices.ContainsFunc(before, func(f purge.Finding) bool { return f.Level != "info" && f.Code != "no-tls" }) ||
			c.clean != "" && !strings.Contains(text(before), c.clean) {
			t.Errorf("%s, before: %s", name, text(before))
		}
		if strings.Contains(c.stage, "SCHEMA pgagent, cron") { // grants for what is there
			must(t, db.conn, "CREATE SCHEMA IF NOT EXISTS pgagent; CREATE SCHEMA IF NOT EXISTS cron")
			c.stage = strings.ReplaceAll(c.stage, "CREATE SCHEMA ", "CREATE SCHEMA IF NOT EXISTS ")
		}
		must(t, db.conn, strings.ReplaceAll(c.stage, "%s", pgx.Identifier{db.name}.Sanitize()))
		after := check(t, s, db.name)
		want := "warning " + c.code
		if c.code == "" {
			want = "info " + c.clean
		}
		if found := text(after); !strings.Contains(found, want) || !strings.Contains(found, c.text) {
			t.Errorf("%s: no %s with %q in %s", name, want, c.text, found)
		}
	}
}

func check(t *testing.T, s stage, database string) []purge.Finding {
	t.Helper()
	checked := policy
	checked.Action = purge.Check
	r := purge.Run(t.Context(), target(s.server(), database), checked, func(purge.DatabaseResult) {}).Databases[0]
	if r.Status != purge.Complete {
		t.Errorf("%+v", r)
	}
	return r.Findings
}

func text(findings []purge.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		b.WriteString(f.Level + " " + f.Code + ": " + f.Message + "\n")
	}
	return b.String()
}

func TestADeadTableIsFound(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_dead", "")
	db := s.create(t)
	must(t, db.conn, "ALTER TABLE dbo.clientaccesstokens SET (autovacuum_enabled = false)")
	must(t, db.conn, "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), '2030-01-01' FROM generate_series(1, 100001)")
	must(t, db.conn, "DELETE FROM dbo.clientaccesstokens")
	for deadline := time.Now().Add(30 * time.Second); ; { // statistics come a little later
		found := text(check(t, s, db.name))
		if strings.Contains(found, "warning dead-rows") && strings.Contains(found, "VACUUM (ANALYZE)") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(found)
		}
		must(t, db.conn, "SELECT 1")
		time.Sleep(200 * time.Millisecond)
	}
}
