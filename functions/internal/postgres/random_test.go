package postgres

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
)

// defect is something that a database may have.
type defect struct{ name, stage string }

const triggerOn = ` LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN %s END$$; CREATE TRIGGER t%d %s DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION t%[2]d()`

var defects = []defect{
	{"no index", "DROP INDEX IF EXISTS dbo.ix_clientaccesstokens_expiration"},
	{"no right to delete", "REVOKE DELETE ON dbo.clientaccesstokens FROM %[1]s_rights"},
	{"no right to read", "REVOKE SELECT (expiration) ON dbo.clientaccesstokens FROM %[1]s_rights"},
	{"no right to tell places apart", "REVOKE SELECT (ctid) ON dbo.clientaccesstokens FROM %[1]s_rights"},
	{"the right to read all", "GRANT SELECT ON dbo.clientaccesstokens TO %[1]s"},
	{"no right to enter", "REVOKE CONNECT ON DATABASE %[2]s FROM PUBLIC, %[1]s_rights"},
	{"row-level security", "ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY"},
	{"published deletes", "CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens; ALTER TABLE dbo.clientaccesstokens REPLICA IDENTITY NOTHING"},
	{"a trigger that keeps some", "CREATE FUNCTION t1() RETURNS trigger" + fmt.Sprintf(triggerOn, "IF OLD.id::text < '4' THEN RETURN NULL; END IF; RETURN OLD;", 1, "BEFORE")},
	{"a trigger that refuses some", "CREATE FUNCTION t2() RETURNS trigger" + fmt.Sprintf(triggerOn, "IF OLD.id::text < '02' THEN RAISE 'not this'; END IF; RETURN OLD;", 2, "BEFORE")},
	{"a trigger that puts some back", "CREATE FUNCTION t3() RETURNS trigger" + fmt.Sprintf(triggerOn, "IF OLD.id::text < '4' THEN INSERT INTO dbo.clientaccesstokens VALUES (OLD.*); END IF; RETURN NULL;", 3, "AFTER")},
	{"rows that are needed", "CREATE TABLE child (id uuid REFERENCES dbo.clientaccesstokens); INSERT INTO child SELECT id FROM dbo.clientaccesstokens ORDER BY id LIMIT 5"},
	{"a rule", "CREATE RULE keep AS ON DELETE TO dbo.clientaccesstokens DO INSTEAD NOTHING"},
	{"a child", "CREATE TABLE dbo.child () INHERITS (dbo.clientaccesstokens)"},
	{"a policy for some rows", "ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY; CREATE POLICY part ON dbo.clientaccesstokens USING (id::text < '8')"},
	{"a policy for all rows", "ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY; CREATE POLICY every ON dbo.clientaccesstokens USING (true)"},
	{"an index in another order", "DROP INDEX IF EXISTS dbo.ix_clientaccesstokens_expiration; CREATE INDEX ON dbo.clientaccesstokens (expiration NULLS FIRST)"},
	{"an index of a part", "DROP INDEX IF EXISTS dbo.ix_clientaccesstokens_expiration; CREATE INDEX ON dbo.clientaccesstokens (expiration) WHERE id::text < '8'"},
	{"transactions that read by default", "ALTER DATABASE %[2]s SET default_transaction_read_only = on"},
	{"no counts", "ALTER ROLE %[1]s IN DATABASE %[2]s SET track_counts = off"},
	{"little time", "ALTER ROLE %[1]s IN DATABASE %[2]s SET statement_timeout = '1ms'"},
	{"another isolation", "ALTER DATABASE %[2]s SET default_transaction_isolation = 'serializable'"},
	{"another zone", "ALTER DATABASE %[2]s SET timezone = 'Pacific/Honolulu'"},
	{"a cascade", "CREATE TABLE cascaded (id uuid REFERENCES dbo.clientaccesstokens ON DELETE CASCADE); INSERT INTO cascaded SELECT id FROM dbo.clientaccesstokens WHERE id::text < '8'"},
	{"parts", `ALTER TABLE dbo.clientaccesstokens RENAME TO whole; CREATE TABLE dbo.clientaccesstokens (LIKE dbo.whole) PARTITION BY RANGE (expiration);
CREATE TABLE dbo.early PARTITION OF dbo.clientaccesstokens FOR VALUES FROM (MINVALUE) TO ('2020-01-01'); CREATE TABLE dbo.late PARTITION OF dbo.clientaccesstokens DEFAULT;
INSERT INTO dbo.clientaccesstokens SELECT * FROM dbo.whole; DROP TABLE dbo.whole CASCADE`},
	{"another name", "ALTER TABLE dbo.clientaccesstokens RENAME TO away"},
}

// A defect's mend is in the messages, as a statement.
var statement = regexp.MustCompile(`(?:ALTER|GRANT|CREATE|DROP) [^;]*;`)

// Databases with random defects, purged three times with a random fault: no live row
// goes, none is skipped but for lack of the table, and the counts are true. Then what
// the findings say mends them.
func TestWhateverADatabaseHasIsPurgedOrToldWithItsMend(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	s := newStage(t, "random", "")
	for n := range 100 {
		db := filled(t, s)
		must(t, db.conn, "ALTER ROLE random NOBYPASSRLS")
		names := []string{}
		missing := false
		for range random.IntN(3) {
			d := defects[random.IntN(len(defects))]
			if strings.Contains(strings.Join(names, ", "), d.name) || missing {
				continue
			}
			if slices.Contains(names, "parts") && (strings.Contains(d.stage, "REFERENCES") || strings.Contains(d.stage, "INHERITS")) {
				continue // a partitioned table has neither
			}
			names, missing = append(names, d.name), d.name == "another name"
			stage := d.stage
			if strings.Contains(stage, "%[") {
				stage = fmt.Sprintf(stage+"%.0[2]s", s.role, pgx.Identifier{db.name}.Sanitize())
			}
			must(t, db.conn, stage)
		}
		what := fmt.Sprintf("SEED=%d, database %d, %s", seed, n, strings.Join(names, ", "))
		table := tokens
		if missing {
			table = "dbo.away"
		}
		left := func(sign string) int64 {
			return one[int64](t, db.conn, "SELECT count(*) FROM "+table+" WHERE expiration "+sign+" now() AT TIME ZONE 'UTC'")
		}
		var deleted int64
		for range 3 {
			r := matchedRun(t, s.server(), db, purge.Purge, random.IntN(3) == 0)
			deleted += r.DeletedRows
			if nothing := missing && !slices.Contains(names, "no right to enter"); (r.Status == purge.Skipped) != nothing {
				t.Fatalf("%s: %s, %s", what, r.Status, r.Error)
			}
			if gone := rows - left("<="); gone != deleted || left(">") != 10 {
				t.Fatalf("%s: %d counted, %d gone, %d live: %s, %s", what, deleted, gone, left(">"), r.Status, r.Error)
			}
			if r.Status == purge.Complete && left("<=") != 0 {
				t.Fatalf("%s: complete with %d left", what, left("<="))
			}
		}
		if missing {
			continue
		}
		for try := 0; ; try++ {
			checked, purged := matchedRun(t, s.server(), db, purge.Check, false), matchedRun(t, s.server(), db, purge.Purge, false)
			if purged.Status == purge.Complete && checked.Status == purge.Complete {
				break
			}
			if purged.Status == purge.Failed && checked.Status != purge.Failed || try == 6 {
				t.Fatalf("%s: after %d mends a check is %s, a purge %s: %s\n%+v", what, try, checked.Status, purged.Status, purged.Error, checked.Findings)
			}
			for _, f := range checked.Findings {
				if f.Level == purge.LevelInfo {
					continue
				}
				for _, mend := range statement.FindAllString(f.Message, -1) {
					if !strings.Contains(mend, "CONCURRENTLY") {
						db.conn.Exec(t.Context(), strings.ReplaceAll(mend, "edfi_token_purge", s.role)) //nolint:errcheck // an alternative of one that did it may fail
					}
				}
			}
		}
	}
}

// matchedRun acts as on a database that a pattern matched, and may end its session once.
func matchedRun(t *testing.T, s Server, db database, action purge.Action, cut bool) purge.DatabaseResult {
	t.Helper()
	to := purge.Target{Engine: s, Tables: []purge.Table{purge.ClientAccessTokens}, Databases: []purge.Database{{Name: db.name, Matched: true}}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	to.Deleted = func(string, int64) {
		if cut {
			cut = false
			db.conn.Exec(context.Background(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = $1", db.role) //nolint:errcheck // a fault
		}
	}
	p := purge.Policy{Action: action, BatchSize: 500, BatchTarget: 50 * time.Millisecond, MaxDuration: 20 * time.Second}
	return purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]
}
