package postgres

import (
	"regexp"
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
		"trigger":      {"CREATE FUNCTION dbo.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'; CREATE TRIGGER \"Audit it\" BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION dbo.f()", "delete-trigger", `ALTER TABLE dbo.clientaccesstokens DISABLE TRIGGER "Audit it";`, ""},
		"rule":         {"CREATE RULE keep AS ON DELETE TO dbo.clientaccesstokens DO INSTEAD NOTHING", "delete-rule", "ALTER TABLE dbo.clientaccesstokens DISABLE RULE keep;", ""},
		"foreign key":  {`CREATE TABLE dbo."Logs" (id uuid CONSTRAINT "of token" REFERENCES dbo.clientaccesstokens)`, "referenced", `ALTER TABLE dbo."Logs" DROP CONSTRAINT "of token";`, ""},
		"pgAgent":      {pgAgent + ";" + jobs, "other-cleaner", "rows are also deleted by pgAgent job expired, pgAgent job nightly, pgAgent job shell. ", "no-other-cleaner"},
		"pg_cron":      {pgCron + ";" + jobs, "other-cleaner", "pg_cron job 1. To end that: SELECT cron.alter_job(job_id := 1, active := false);", "no-other-cleaner"},
		"unseen jobs":  {pgAgent, "info other-cleaner-unseen", "stop-old-job.sql", "no-other-cleaner"},
		"a part":       {pgAgent + "; GRANT USAGE ON SCHEMA pgagent TO purge_check; GRANT SELECT ON pgagent.pga_jobstep TO purge_check", "info other-cleaner-unseen", "", "no-other-cleaner"},
		"others' jobs": {pgCron + "; ALTER TABLE cron.job ENABLE ROW LEVEL SECURITY; " + jobs, "info other-cleaner-unseen", "", "no-other-cleaner"},
		"own jobs":     {pgCron + "; ALTER TABLE cron.job ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON cron.job USING (username = CURRENT_USER); UPDATE cron.job SET username = 'purge_check'; " + jobs, "other-cleaner", "pg_cron job 1. ", "no-other-cleaner"},
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
		want := c.code
		if !strings.HasPrefix(want, "info ") {
			want = "warning " + want
		}
		if found := text(after); !strings.Contains(found, want) || !strings.Contains(found, c.text) {
			t.Errorf("%s: no %s with %q in %s", name, want, c.text, found)
		}
	}
}

// The statements that the findings hold are those that mend.
func TestWhatAFindingSaysMends(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_mended", "")
	for name, c := range map[string]struct{ stage, code, mends string }{
		"trigger":     {`CREATE FUNCTION dbo.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER "Keep it" BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION dbo.f()`, "delete-trigger", `ALTER TABLE .*;`},
		"rule":        {`CREATE RULE "Keep it" AS ON DELETE TO dbo.clientaccesstokens DO INSTEAD NOTHING`, "delete-rule", `ALTER TABLE .*;`},
		"foreign key": {`CREATE TABLE dbo."Logs" (id uuid CONSTRAINT "of token" REFERENCES dbo.clientaccesstokens); INSERT INTO dbo."Logs" SELECT id FROM dbo.clientaccesstokens`, "referenced", `ALTER TABLE .*;`},
		"index":       {"DROP INDEX dbo.ix_clientaccesstokens_expiration", "missing-expiration-index", `CREATE INDEX .*;`},
	} {
		db := s.create(t)
		db.Insert(t, db.Now(t).Add(-time.Hour))
		must(t, db.conn, c.stage)
		found := act(t, s.server(), db.name, purge.Check).Findings // some fail a check, too
		at := slices.IndexFunc(found, func(f purge.Finding) bool { return f.Code == c.code })
		if at < 0 {
			t.Errorf("%s: no %s in %s", name, c.code, text(found))
			continue
		}
		mend := regexp.MustCompile(c.mends).FindString(found[at].Message)
		must(t, db.conn, strings.ReplaceAll(mend, "edfi_token_purge", s.role))
		if found := check(t, s, db.name); strings.Contains(text(found), c.code) {
			t.Errorf("%s: %q leaves %s", name, mend, text(found))
		}
		if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
			t.Errorf("%s, after %q: %+v", name, mend, r)
		}
	}
}

func TestRowsThatRowSecurityHidesAreNoCleanTable(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_filtered", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	must(t, db.conn, "ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY")
	for _, action := range []purge.Action{purge.Purge, purge.DryRun, purge.Check} {
		r := act(t, s.server(), db.name, action)
		if found := text(r.Findings); r.Status != purge.Failed || strings.Count(found, "error row-security") != 1 {
			t.Errorf("%s: %s\n%s", action, r.Status, found)
		}
	}
	if left := len(db.Expirations(t)); left != 1 {
		t.Errorf("%d rows are left", left)
	}
}

func check(t *testing.T, s stage, database string) []purge.Finding {
	t.Helper()
	r := act(t, s.server(), database, purge.Check)
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
