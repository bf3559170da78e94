package postgres

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/docs"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// The tables of pgAgent 4.2 and pg_cron 1.6, as far as a job is told by them.
const (
	pgAgent = `
CREATE SCHEMA pgagent;
CREATE TABLE pgagent.pga_job (
    jobid serial PRIMARY KEY, jobjclid int4 NOT NULL DEFAULT 1, jobname text NOT NULL, jobdesc text NOT NULL DEFAULT '',
    jobhostagent text NOT NULL DEFAULT '', jobenabled bool NOT NULL DEFAULT true,
    jobcreated timestamptz NOT NULL DEFAULT now(), jobchanged timestamptz NOT NULL DEFAULT now(),
    jobagentid int4, jobnextrun timestamptz, joblastrun timestamptz);
CREATE TABLE pgagent.pga_jobstep (
    jstid serial PRIMARY KEY, jstjobid int4 NOT NULL REFERENCES pgagent.pga_job, jstname text NOT NULL, jstdesc text NOT NULL DEFAULT '',
    jstenabled bool NOT NULL DEFAULT true, jstkind char NOT NULL CHECK (jstkind IN ('b', 's')), jstcode text NOT NULL,
    jstconnstr text NOT NULL DEFAULT '', jstdbname name NOT NULL DEFAULT '', jstonerror char NOT NULL DEFAULT 'f', jscnextrun timestamptz);
INSERT INTO pgagent.pga_job (jobname, jobenabled) VALUES ('expired', true), ('nightly', true), ('shell', true), ('statistics', true), ('off', false);
INSERT INTO pgagent.pga_jobstep (jstjobid, jstname, jstkind, jstcode) VALUES
    (1, 'delete', 's', E'DELETE FROM\n  dbo.ClientAccessTokens WHERE expiration < now()'),
    (2, 'tokens', 's', 'delete from only dbo."clientaccesstokens" where expiration < now()'),
    (2, 'vacuum', 's', 'VACUUM dbo.clientaccesstokens'),
    (3, 'psql', 'b', 'psql -d EdFi_Admin -c "DELETE FROM dbo.ClientAccessTokens WHERE expiration < now()"'),
    (4, 'count', 's', 'SELECT count(*) FROM dbo.clientaccesstokens'),
    (4, 'other', 's', 'DELETE FROM dbo.clientaccesstokens_deleted'),
    (5, 'delete', 's', 'DELETE FROM dbo.clientaccesstokens')`

	pgCron = `
CREATE SCHEMA cron;
CREATE TABLE cron.job (
    jobid bigserial PRIMARY KEY, schedule text NOT NULL, command text NOT NULL, nodename text NOT NULL DEFAULT 'localhost',
    nodeport int NOT NULL DEFAULT 5432, database text NOT NULL DEFAULT current_database(), username text NOT NULL DEFAULT current_user,
    active boolean NOT NULL DEFAULT true, jobname text);
INSERT INTO cron.job (schedule, command) VALUES
    ('*/30 * * * *', 'DELETE FROM dbo.ClientAccessTokens WHERE expiration < now()'),
    ('0 3 * * *', 'DELETE FROM cron.job_run_details')`

	alterJob = `
CREATE FUNCTION cron.alter_job(job_id bigint, schedule text DEFAULT NULL, command text DEFAULT NULL, database text DEFAULT NULL,
                               username text DEFAULT NULL, active boolean DEFAULT NULL) RETURNS void LANGUAGE sql
AS $$ UPDATE cron.job SET active = $6, nodename = 'altered' WHERE jobid = $1 $$`
)

func TestTheOldJobsStopAndNoOthers(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("../../../infra/postgres/stop-old-job.sql")
	if err != nil {
		t.Fatal(err)
	}
	// How docs/moving-over.md has one see them: anything that names the table.
	queries := map[string]int64{}
	blocks, err := docs.Blocks("sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if strings.Contains(b.Text, "pgagent.") {
			queries[b.Text] = 7
		} else if strings.Contains(b.Text, "cron.job") {
			queries[b.Text] = 1
		}
	}
	if len(queries) != 2 {
		t.Errorf("there are %d queries", len(queries))
	}
	jobs := []string{
		`pgAgent: disabled step "delete" of job 1 "expired", and the job, which has no other`,
		`pgAgent: disabled step "tokens" of job 2 "nightly"; the job has other steps`,
		`pgAgent: disabled step "psql" of job 3 "shell", and the job, which has no other`,
		`pgAgent: step "delete" of job 5 "off" is disabled already`,
		`pg_cron: disabled job 1 in database DATABASE`,
	}
	again := slices.Clone(jobs)
	for i, name := range []string{`"delete" of job 1 "expired"`, `"tokens" of job 2 "nightly"`, `"psql" of job 3 "shell"`} {
		again[i] = "pgAgent: step " + name + " is disabled already"
	}
	again[4] = `pg_cron: job 1 in database DATABASE is disabled already`
	for name, c := range map[string]struct {
		stage       []string
		first, then []string
		cron        string
	}{
		"none": {nil, []string{"pgAgent: not in database DATABASE", "pg_cron: not in database DATABASE"}, nil, ""},
		"both": {[]string{pgAgent, pgCron, alterJob}, jobs, again, "1 false altered, 2 true localhost"},
		"old":  {[]string{pgAgent, pgCron}, jobs, again, "1 false localhost, 2 true localhost"},
		"idle": {
			[]string{pgCron, "DELETE FROM cron.job WHERE jobid = 1"},
			[]string{"pgAgent: not in database DATABASE", "pg_cron: no job here deletes from clientaccesstokens"},
			nil, "2 true localhost",
		},
	} {
		database := "scheduler_" + name
		if err := edfi.CreateDatabase(t.Context(), server.URL("postgres"), database); err != nil {
			t.Fatal(err)
		}
		config, err := pgx.ParseConfig(server.URL(database))
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
			said = append(said, strings.ReplaceAll(n.Message, database, "DATABASE"))
		}
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		for _, sql := range c.stage {
			must(t, conn, sql)
		}
		if c.then == nil {
			c.then = c.first
		}
		for i, want := range [][]string{c.first, c.then} { // it can be run again
			said = nil
			if must(t, conn, string(script)); !slices.Equal(said, want) {
				t.Errorf("%s, run %d:\n%s\nwant\n%s", name, i+1, strings.Join(said, "\n"), strings.Join(want, "\n"))
			}
		}
		if c.stage == nil {
			continue
		}
		if name != "idle" {
			for query, rows := range queries {
				if got, err := conn.Exec(t.Context(), query); err != nil || got.RowsAffected() != rows {
					t.Errorf("%s\n%d rows, %v, want %d", query, got.RowsAffected(), err, rows)
				}
			}
			expectText(t, conn, `SELECT string_agg(concat_ws(' ', jobname, jobenabled), ', ' ORDER BY jobid) FROM pgagent.pga_job`,
				"expired f, nightly t, shell f, statistics t, off f")
			expectText(t, conn, `SELECT string_agg(concat_ws(' ', jstname, jstenabled), ', ' ORDER BY jstid) FROM pgagent.pga_jobstep`,
				"delete f, tokens f, vacuum t, psql f, count t, other t, delete t")
		}
		expectText(t, conn, `SELECT string_agg(format('%s %s %s', jobid, active::text, nodename), ', ' ORDER BY jobid) FROM cron.job`, c.cron)
	}
}

// Each table has its own, and a check of one finds no other's.
func TestACheckFindsTheCleanersOfItsTable(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_cleaners", "")
	db := estate(t, s, purge.Tables()...)
	must(t, db.conn, pgAgent+";"+pgCron+";"+alterJob+`;
GRANT USAGE ON SCHEMA pgagent, cron TO purge_cleaners; GRANT SELECT ON ALL TABLES IN SCHEMA pgagent, cron TO purge_cleaners;
INSERT INTO pgagent.pga_job (jobname) VALUES ('admin'), ('path'), ('another schema'), ('other tokens');
INSERT INTO pgagent.pga_jobstep (jstjobid, jstname, jstkind, jstcode) VALUES
    (6, 'a', 's', 'DELETE FROM adminapi."tokens" WHERE expirationdate < now()'),
    (7, 'b', 's', E'SET search_path = adminapi;\nDelete from Tokens where ExpirationDate < now()'),
    (8, 'c', 's', 'DELETE FROM other.tokens'),
    (9, 'd', 's', 'DELETE FROM adminapi.tokens_old; SELECT count(*) FROM adminapi.tokens_new');
INSERT INTO cron.job (schedule, command) VALUES
    ('0 * * * *', 'DELETE FROM "dmscs"."OpenIddictToken" WHERE "ExpirationDate" < now()'),
    ('0 * * * *', 'DELETE FROM dbo.clientaccesstokenlogs WHERE accesstime < now() - make_interval(days => 90)')`)
	const own = "deletes too shows in no database"
	for _, c := range []struct {
		table        purge.Table
		jobs, mended string // what is found, and what then
	}{
		{purge.ClientAccessTokens, "pgAgent job expired, pgAgent job nightly, pgAgent job shell, pg_cron job 1. ", "DeleteExpiredTokens, " + own},
		{purge.AdminTokens, "pgAgent job admin, pgAgent job path. ", "often postgres"},
		{purge.ConfigurationTokens, "pg_cron job 3. ", "IdentitySettings:TokenCleanupEnabled turns off, " + own},
		{purge.ClientAccessTokenLogs, "pg_cron job 4. ", "often postgres"},
	} {
		p := policy
		p.Action = purge.Check
		found := text(runTables(t, s.server(), db, p, c.table).Findings)
		if !strings.Contains(found, "warning other-cleaner: rows are also deleted by "+c.jobs) {
			t.Errorf("%s: %s", c.table, found)
		}
		for _, mend := range regexp.MustCompile(`(UPDATE|SELECT) [^;]*;`).FindAllString(found, -1) {
			must(t, db.conn, mend)
		}
		found = text(runTables(t, s.server(), db, p, c.table).Findings)
		if !strings.Contains(found, "info no-other-cleaner") || !strings.Contains(found, c.mended) {
			t.Errorf("%s, mended: %s", c.table, found)
		}
	}
}

func expectText(t *testing.T, conn *pgx.Conn, query, want string) {
	t.Helper()
	var got string
	if err := conn.QueryRow(t.Context(), query).Scan(&got); err != nil || got != want {
		t.Errorf("%s\n%s, %v, want\n%s", query, got, err, want)
	}
}
