package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

const tokens = "dbo.clientaccesstokens"

// rows is how many expired ones the tests of states begin with, beside ten live ones.
const rows = 4000

// filled returns a database with rows.
func filled(t *testing.T, s stage) database {
	t.Helper()
	db := s.create(t)
	if err := edfi.Fill(t.Context(), db.conn, edfi.FillOptions{Expired: rows, Live: 10}, nil); err != nil {
		t.Fatal(err)
	}
	return db
}

// counts returns how many rows have expired and how many have not.
func (d database) counts(t *testing.T) (expired, live int64) {
	t.Helper()
	return one[int64](t, d.conn, "SELECT count(*) FROM "+tokens+" WHERE expiration <= now() AT TIME ZONE 'UTC'"),
		one[int64](t, d.conn, "SELECT count(*) FROM "+tokens+" WHERE expiration > now() AT TIME ZONE 'UTC'")
}

// purgeWith purges, and does something once in the middle.
func purgeWith(ctx context.Context, t *testing.T, s Server, database string, p purge.Policy, middle func()) purge.DatabaseResult {
	t.Helper()
	p.Action = purge.Purge
	to := target(s, database)
	var once sync.Once
	to.Deleted = func(string, int64) {
		if middle != nil {
			once.Do(middle)
		}
	}
	return purge.Run(ctx, to, p, func(purge.DatabaseResult) {}).Databases[0]
}

// Each assumption that is checked once and relied on later, changed in the middle of a
// run. Whatever comes of it, no live row goes, and what is counted is what left.
func TestWhatChangesInTheMiddleOfARunCostsNoLiveTokenAndNoTrueCount(t *testing.T) {
	for name, c := range map[string]struct {
		change string
		status purge.Status
		says   string
	}{
		"the type, to timestamptz east of Greenwich": {"SET timezone = 'Asia/Tokyo'; ALTER TABLE dbo.clientaccesstokens ALTER expiration TYPE timestamptz", purge.Failed, "timestamp with time zone"},
		"the type, to timestamptz west of Greenwich": {"SET timezone = 'America/New_York'; ALTER TABLE dbo.clientaccesstokens ALTER expiration TYPE timestamptz", purge.Failed, "timestamp with time zone"},
		"the type, to text":                          {"ALTER TABLE dbo.clientaccesstokens ALTER expiration TYPE text", purge.Failed, "of type text"},
		"the column's name":                          {"ALTER TABLE dbo.clientaccesstokens RENAME expiration TO expires", purge.Failed, "no column expiration"},
		"the owner":                                  {"CREATE ROLE owner_%[1]s; ALTER TABLE dbo.clientaccesstokens OWNER TO owner_%[1]s", purge.Complete, ""},
		"the right to delete":                        {"REVOKE DELETE ON dbo.clientaccesstokens FROM states, states_rights", purge.Failed, "GRANT"},
		"the right to read":                          {"REVOKE SELECT (expiration) ON dbo.clientaccesstokens FROM states, states_rights", purge.Failed, "GRANT"},
		"the index":                                  {"DROP INDEX dbo.ix_clientaccesstokens_expiration", purge.Complete, ""},
		"row-level security":                         {"ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY", purge.Failed, "row-level security"},
		"a policy that hides":                        {"ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON dbo.clientaccesstokens USING (id::text < '8')", purge.Failed, "row-level security"},
		"a policy that shows all":                    {"ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY; CREATE POLICY everything ON dbo.clientaccesstokens USING (true)", purge.Complete, ""},
		"a trigger that keeps all":                   {"CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER keep BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION keep()", purge.Failed, "DELETE does not remove"},
		"a trigger that puts all back":               {"CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO dbo.clientaccesstokens VALUES (OLD.*); RETURN NULL; END'; CREATE TRIGGER back AFTER DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION back()", purge.Failed, "DELETE does not remove"},
		"a rule that does nothing":                   {"CREATE RULE keep AS ON DELETE TO dbo.clientaccesstokens DO INSTEAD NOTHING", purge.Failed, "DELETE does not remove"},
		"a child":                                    {"CREATE TABLE dbo.child () INHERITS (dbo.clientaccesstokens); INSERT INTO dbo.child SELECT * FROM dbo.clientaccesstokens LIMIT 7", purge.Complete, ""},
		"what is published":                          {"ALTER TABLE dbo.clientaccesstokens REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens", purge.Failed, "REPLICA IDENTITY FULL;"},
		"another table of the same name":             {"ALTER TABLE dbo.clientaccesstokens RENAME TO before; CREATE TABLE dbo.clientaccesstokens (LIKE dbo.before INCLUDING ALL); GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO states", purge.Complete, ""},
		"a view of the same name":                    {"ALTER TABLE dbo.clientaccesstokens RENAME TO before; CREATE VIEW dbo.clientaccesstokens AS TABLE dbo.before; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO states", purge.Failed, "a view"},
		"a table that is renamed":                    {"ALTER TABLE dbo.clientaccesstokens RENAME TO away", purge.Failed, "does not exist"},
		"a table that is dropped":                    {"DROP TABLE dbo.clientaccesstokens", purge.Failed, "does not exist"},
		"a table that is truncated":                  {"TRUNCATE dbo.clientaccesstokens", purge.Complete, ""},
		"statistics, and all rows rewritten":         {"VACUUM FULL ANALYZE dbo.clientaccesstokens", purge.Complete, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "states", "")
			db := filled(t, s)
			// All that ever were, and who deleted what of the table itself.
			must(t, db.conn, "CREATE TABLE every AS SELECT id, expiration FROM dbo.clientaccesstokens; CREATE TABLE gone (id uuid); GRANT INSERT ON gone TO PUBLIC")
			must(t, db.conn, "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.gone VALUES (OLD.id); RETURN OLD; END'; CREATE TRIGGER log BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION log()")
			r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 100}, func() {
				change := c.change
				if strings.Contains(change, "%[1]s") {
					change = fmt.Sprintf(change, strings.ToLower(db.name))
				}
				must(t, db.conn, change)
			})
			if r.Status != c.status || !strings.Contains(r.Error, c.says) || c.status == purge.Failed && r.Cutoff == nil {
				t.Errorf("%s / %s, %q", r.Status, r.StopReason, r.Error)
			}
			if live := one[int64](t, db.conn, "SELECT count(*) FROM gone JOIN every USING (id) WHERE expiration > now() AT TIME ZONE 'UTC'"); live != 0 {
				t.Errorf("%d live tokens were deleted", live)
			}
			if r.DeletedRows < 100 || r.DeletedRows > rows+7 {
				t.Errorf("%d rows counted", r.DeletedRows)
			}
			if c.status == purge.Complete && one[bool](t, db.conn, "SELECT EXISTS (SELECT FROM dbo.clientaccesstokens WHERE expiration <= now() AT TIME ZONE 'UTC')") {
				t.Error("complete, and something expired is left")
			}
		})
	}
}

// What a table may be that still has to be purged to the row.
func TestWhateverTheTableIsMadeOfEachExpiredRowGoesAndIsCounted(t *testing.T) {
	for name, make := range map[string]string{
		"an inheritance parent": `CREATE TABLE dbo.y2025 () INHERITS (dbo.clientaccesstokens); CREATE TABLE dbo.y2026 () INHERITS (dbo.clientaccesstokens);
			WITH moved AS (DELETE FROM ONLY dbo.clientaccesstokens WHERE id::text < '8' RETURNING *) INSERT INTO dbo.y2025 SELECT * FROM moved;
			CREATE INDEX ON dbo.y2025 (expiration);
VACUUM dbo.clientaccesstokens`,
		"an empty inheritance parent": `CREATE TABLE dbo.child () INHERITS (dbo.clientaccesstokens);
			INSERT INTO dbo.child SELECT * FROM ONLY dbo.clientaccesstokens; TRUNCATE ONLY dbo.clientaccesstokens`,
		"a partitioned table": `ALTER TABLE dbo.clientaccesstokens RENAME TO old; DROP INDEX dbo.ix_clientaccesstokens_expiration;
			CREATE TABLE dbo.clientaccesstokens (LIKE dbo.old) PARTITION BY HASH (id);
			CREATE TABLE dbo.p0 PARTITION OF dbo.clientaccesstokens FOR VALUES WITH (MODULUS 2, REMAINDER 0);
			CREATE TABLE dbo.p1 PARTITION OF dbo.clientaccesstokens FOR VALUES WITH (MODULUS 2, REMAINDER 1);
			CREATE INDEX ON dbo.clientaccesstokens (expiration DESC);
			INSERT INTO dbo.clientaccesstokens SELECT * FROM dbo.old; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO kinds`,
		"an index with nulls first":      "DROP INDEX dbo.ix_clientaccesstokens_expiration; CREATE INDEX ON dbo.clientaccesstokens (expiration ASC NULLS FIRST)",
		"an index that descends, last":   "DROP INDEX dbo.ix_clientaccesstokens_expiration; CREATE INDEX ON dbo.clientaccesstokens (expiration DESC NULLS LAST)",
		"a block range index":            "DROP INDEX dbo.ix_clientaccesstokens_expiration; CREATE INDEX ON dbo.clientaccesstokens USING brin (expiration)",
		"an audit rule":                  "CREATE TABLE audit (at timestamp); GRANT INSERT ON audit TO PUBLIC; CREATE RULE audit AS ON DELETE TO dbo.clientaccesstokens DO ALSO INSERT INTO public.audit VALUES (now())",
		"a trigger with subtransactions": "CREATE TABLE audit (id uuid); GRANT INSERT ON audit TO PUBLIC; CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN BEGIN INSERT INTO public.audit VALUES (OLD.id); EXCEPTION WHEN others THEN NULL; END; RETURN OLD; END'; CREATE TRIGGER audit BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION audit()",
		"a table that refers to itself":  "ALTER TABLE dbo.clientaccesstokens ADD parent uuid REFERENCES dbo.clientaccesstokens ON DELETE CASCADE; CREATE INDEX ON dbo.clientaccesstokens (parent); UPDATE dbo.clientaccesstokens SET parent = (SELECT id FROM dbo.clientaccesstokens ORDER BY expiration LIMIT 1) WHERE expiration < now() AT TIME ZONE 'UTC'",
		"a column of its own type":       "ALTER TABLE dbo.clientaccesstokens ADD note text DEFAULT 'x'",
	} {
		for _, right := range []string{"", "GRANT SELECT ON dbo.clientaccesstokens TO kinds"} {
			t.Run(name+" "+right, func(t *testing.T) {
				s := newStage(t, "kinds", "")
				db := filled(t, s)
				for statement := range strings.SplitSeq(make, ";\n") {
					must(t, db.conn, statement)
				}
				must(t, db.conn, right)
				r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 500, BatchTarget: time.Second}, nil)
				expired, live := db.counts(t)
				if r.Status != purge.Complete || r.DeletedRows != rows || expired != 0 || live != 10 {
					t.Errorf("%s, %d rows deleted, %d expired and %d live left: %s", r.Status, r.DeletedRows, expired, live, r.Error)
				}
			})
		}
	}
}

func TestWhatStandsInTheTablesPlaceIsToldForWhatItIs(t *testing.T) {
	s := newStage(t, "places", "")
	for what, make := range map[string]string{
		"a view":              "CREATE VIEW dbo.clientaccesstokens AS TABLE dbo.old",
		"a materialized view": "CREATE MATERIALIZED VIEW dbo.clientaccesstokens AS TABLE dbo.old",
		"a sequence":          "CREATE SEQUENCE dbo.clientaccesstokens",
	} {
		db := filled(t, s)
		must(t, db.conn, "ALTER TABLE dbo.clientaccesstokens RENAME TO old; "+make+"; GRANT ALL ON dbo.clientaccesstokens TO places")
		for _, action := range []purge.Action{purge.Purge, purge.DryRun, purge.Check} {
			if r := act(t, s.server(), db.name, action); r.Status != purge.Failed || !strings.Contains(r.Error, "is "+what+" and no table") {
				t.Errorf("%s, %s: %s, %s", what, action, r.Status, r.Error)
			}
		}
	}
}

func TestATableOfTheSameNameInOtherLettersIsTold(t *testing.T) {
	s := newStage(t, "letter_case", "")
	db := filled(t, s)
	must(t, db.conn, `CREATE TABLE dbo."ClientAccessTokens" (LIKE dbo.clientaccesstokens); INSERT INTO dbo."ClientAccessTokens" TABLE dbo.clientaccesstokens`)
	checked, purged := act(t, s.server(), db.name, purge.Check), run(t, s.server(), db.name)
	mend := `ALTER TABLE dbo."ClientAccessTokens" RENAME TO not_in_use;`
	if !strings.Contains(text(checked.Findings), mend) || !strings.Contains(text(purged.Findings), mend) || purged.DeletedRows != rows {
		t.Errorf("%d rows\n%s\n%s", purged.DeletedRows, text(checked.Findings), text(purged.Findings))
	}
	must(t, db.conn, mend)
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || strings.Contains(text(r.Findings), "two-tables") {
		t.Errorf("%s: %s", r.Status, text(r.Findings))
	}
}

func TestRowsThatAreReferencedOrRefusedStayAndAllOthersGo(t *testing.T) {
	cases := map[string]string{
		"referenced": "CREATE TABLE child (id uuid REFERENCES dbo.clientaccesstokens); INSERT INTO child SELECT id FROM dbo.clientaccesstokens ORDER BY expiration OFFSET 1234 LIMIT 3",
	}
	// Whatever it raises: a trigger may reach for another server, and say what that says.
	for _, code := range []string{"P0001", "08006", "57P01", "53300", "28P01", "3D000", "22012", "42501", "42P10"} {
		cases["refused with "+code] = "CREATE TABLE keep AS SELECT id FROM dbo.clientaccesstokens ORDER BY expiration OFFSET 1234 LIMIT 3; GRANT SELECT ON keep TO PUBLIC; CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF EXISTS (SELECT FROM public.keep WHERE id = OLD.id) THEN RAISE 'not this one' USING ERRCODE = '" + code + "'; END IF; RETURN OLD; END$$; CREATE TRIGGER no BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION no()"
	}
	for name, make := range cases {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "refused", "")
			db := filled(t, s)
			must(t, db.conn, make)
			r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 1000, BatchTarget: time.Second}, nil)
			expired, live := db.counts(t)
			if r.Status != purge.Failed || r.DeletedRows != rows-3 || expired != 3 || live != 10 || !strings.Contains(r.Error, "3 rows stay") {
				t.Errorf("%s, %d rows deleted, %d expired and %d live left: %s", r.Status, r.DeletedRows, expired, live, r.Error)
			}
		})
	}
}

func TestNeitherTheCapNorABatchGrowsWithWhatArrivesMeanwhile(t *testing.T) {
	s := newStage(t, "arriving", "")
	for _, right := range []string{"", "GRANT SELECT ON dbo.clientaccesstokens TO arriving"} {
		db := filled(t, s)
		must(t, db.conn, right)
		must(t, db.conn, "CREATE TABLE batch (rows int); GRANT ALL ON batch TO PUBLIC; CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.batch SELECT count(*) FROM gone; RETURN NULL; END'; CREATE TRIGGER log AFTER DELETE ON dbo.clientaccesstokens REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION log()")
		r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 500, MaxRows: 2000}, func() { // into windows that are cut
			must(t, db.conn, "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), expiration + make_interval(secs => n * 0.001) FROM dbo.clientaccesstokens, generate_series(1, 20) AS n WHERE expiration < now() AT TIME ZONE 'UTC'")
		})
		if r.DeletedRows != 2000 || r.StopReason != purge.MaxRows {
			t.Errorf("%d rows, %s / %s: %s", r.DeletedRows, r.Status, r.StopReason, r.Error)
		}
		if most := one[int](t, db.conn, "SELECT coalesce(max(rows), 0) FROM batch"); most > 500 {
			t.Errorf("%d rows in one statement", most)
		}
	}
}

func TestRowsThatTakeLongGoAFewAtATimeInEachRun(t *testing.T) {
	s := newStage(t, "slowly", "")
	db := filled(t, s)
	db.Delay(t, 15*time.Millisecond)
	server := s.server()
	policy := purge.Policy{BatchSize: 5000, BatchTarget: 50 * time.Millisecond, MaxDuration: 3 * time.Second, StopBefore: time.Second}
	server.Longest = policy.Longest()
	left := int64(rows)
	for range 2 {
		r := purgeWith(t.Context(), t, server, db.name, policy, nil)
		expired, _ := db.counts(t)
		if r.Status != purge.Partial || r.DeletedRows < 50 || expired != left-r.DeletedRows {
			t.Errorf("%s, %d rows, %d of %d left: %s", r.Status, r.DeletedRows, expired, left, r.Error)
		}
		if found := text(r.Findings); !strings.Contains(found, "warning slow-rows") || !strings.Contains(found, "DISABLE TRIGGER before_delete;") {
			t.Error(found)
		}
		left = expired
	}
}

func TestTheNumberOfABatchThatEndsInATieIsUnknown(t *testing.T) {
	s := newStage(t, "tied", "")
	db := s.create(t)
	now := db.Now(t)
	at := now.Add(-time.Hour)
	db.Insert(t, at, at.Add(time.Second), at.Add(2*time.Second), at.Add(2*time.Second), at.Add(3*time.Second))
	conn, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for size, want := range map[int][]int64{2: {2, 2, 1}, 3: {0, 3}, 4: {4, 1}, 5: {5}} {
		cut, _, err := conn.Cut(t.Context(), conn.Expired(time.Time{}, now), size, 8)
		var got []int64
		for _, b := range cut {
			got = append(got, b.Rows)
		}
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("batches of %d: %v, want %v, %v", size, got, want, err)
		}
	}
}

func TestRowLevelSecurityFailsWhereItHidesRowsAndItsMendMends(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		fails  bool
	}{
		"no policy":                       {"", true},
		"one that hides some":             {"CREATE POLICY p ON dbo.clientaccesstokens USING (id::text > '8')", true},
		"one for others":                  {"CREATE POLICY p ON dbo.clientaccesstokens TO postgres USING (true)", true},
		"one for reading":                 {"CREATE POLICY p ON dbo.clientaccesstokens FOR SELECT USING (true)", true},
		"one that shows all":              {"CREATE POLICY p ON dbo.clientaccesstokens USING (true)", false},
		"two that show all":               {"CREATE POLICY p ON dbo.clientaccesstokens FOR SELECT USING (true); CREATE POLICY q ON dbo.clientaccesstokens FOR DELETE TO secured USING (true)", false},
		"one that takes some of a delete": {"CREATE POLICY p ON dbo.clientaccesstokens USING (true); CREATE POLICY q ON dbo.clientaccesstokens AS RESTRICTIVE FOR DELETE USING (id::text > '8')", true},
		"one that takes some away again":  {"CREATE POLICY p ON dbo.clientaccesstokens USING (true); CREATE POLICY q ON dbo.clientaccesstokens AS RESTRICTIVE USING (id::text > '8')", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "secured", "")
			db := filled(t, s)
			must(t, db.conn, "ALTER ROLE secured NOBYPASSRLS; ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY; "+c.policy)
			check := act(t, s.server(), db.name, purge.Check)
			r := run(t, s.server(), db.name)
			if (r.Status == purge.Failed) != c.fails || (check.Status == purge.Failed) != c.fails {
				t.Errorf("a check is %s, a purge %s: %s", check.Status, r.Status, r.Error)
			}
			if c.fails && r.Findings[0].Code != purge.RowSecurity.Code {
				t.Errorf("%+v", r.Findings)
			}
			if c.fails {
				_, mend, _ := strings.Cut(r.Error, "; or ")
				if name == "no policy" || mend == "" { // the other one of the two
					mend = regexp.MustCompile("ALTER ROLE [^;]*").FindString(r.Error)
				}
				must(t, db.conn, strings.ReplaceAll(mend, "edfi_token_purge", "secured"))
				r = run(t, s.server(), db.name)
			}
			expired, live := db.counts(t)
			if r.Status == purge.Complete && (expired != 0 || live != 10) || r.Status != purge.Complete {
				t.Errorf("%s with %d expired and %d live left: %s", r.Status, expired, live, r.Error)
			}
		})
	}
}

func TestAStatementThatSomebodyCancelsIsTriedAgain(t *testing.T) {
	s := newStage(t, "canceled", "")
	db := filled(t, s)
	db.Delay(t, time.Millisecond)
	other := connect(t, db.name)
	ctx, cancel := context.WithCancel(t.Context())
	var canceling sync.WaitGroup
	canceling.Go(func() {
		for range 3 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(150 * time.Millisecond):
			}
			if _, err := other.Exec(ctx, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'canceled' AND state = 'active'"); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
	r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 500}, nil)
	cancel()
	canceling.Wait()
	if expired, live := db.counts(t); r.Status != purge.Complete || r.DeletedRows != rows || expired != 0 || live != 10 {
		t.Errorf("%+v", r)
	}
}

// Whatever a purge fails for, a check fails for too, with the statement that mends it.
func TestACheckIsNeverGreenWhereAPurgeFails(t *testing.T) {
	cases := map[string]struct{ stage, mend string }{
		"no right to delete":      {"REVOKE DELETE ON dbo.clientaccesstokens FROM parity_rights", "GRANT .*;"},
		"no right to read":        {"REVOKE SELECT (expiration) ON dbo.clientaccesstokens FROM parity_rights", "GRANT .*;"},
		"no right in schema":      {"REVOKE USAGE ON SCHEMA dbo FROM parity_rights", "GRANT .*;"},
		"row-level security":      {"ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY", "CREATE POLICY .*;"},
		"published deletes":       {"CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens; ALTER TABLE dbo.clientaccesstokens REPLICA IDENTITY NOTHING", "ALTER TABLE .*;"},
		"a child of it published": {"CREATE TABLE dbo.child () INHERITS (dbo.clientaccesstokens); CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens", "ALTER TABLE .*;"},
		"all tables published":    {"CREATE PUBLICATION p FOR ALL TABLES; ALTER TABLE dbo.clientaccesstokens REPLICA IDENTITY NOTHING", "ALTER TABLE .*;"},
		"published as its whole": {`ALTER TABLE dbo.clientaccesstokens RENAME TO whole; CREATE TABLE dbo.clientaccesstokens (LIKE dbo.whole) PARTITION BY RANGE (expiration);
			CREATE TABLE dbo.part PARTITION OF dbo.clientaccesstokens DEFAULT; INSERT INTO dbo.clientaccesstokens SELECT * FROM dbo.whole; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO parity_rights;
			CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens WITH (publish_via_partition_root = true)`, "ALTER TABLE dbo.part .*;"},
		"published with a key that waits": {"ALTER TABLE dbo.clientaccesstokens DROP CONSTRAINT clientaccesstokens_pk, ADD PRIMARY KEY (id) DEFERRABLE; CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens", "ALTER TABLE .*;"},
		"inserts published":               {"CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens WITH (publish = 'insert'); ALTER TABLE dbo.clientaccesstokens REPLICA IDENTITY NOTHING", ""},
		"a trigger that keeps":            {"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER keep BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION f()", "ALTER TABLE [^;]* DISABLE TRIGGER .*;"},
		"one that refuses":                {"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$; CREATE TRIGGER no BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION f()", "ALTER TABLE [^;]* DISABLE TRIGGER .*;"},
		"one that puts back":              {"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO dbo.clientaccesstokens VALUES (OLD.*); RETURN NULL; END'; CREATE TRIGGER back AFTER DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION f()", "ALTER TABLE [^;]* DISABLE TRIGGER .*;"},
		"one that only watches":           {"CREATE TABLE gone (id uuid); GRANT INSERT ON gone TO PUBLIC; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.gone VALUES (OLD.id); RETURN OLD; END'; CREATE TRIGGER watch BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION f()", ""},
		"a rule":                          {"CREATE RULE keep AS ON DELETE TO dbo.clientaccesstokens DO INSTEAD NOTHING", "ALTER TABLE [^;]* DISABLE RULE .*;"},
		"rows that are needed":            {"CREATE TABLE child (id uuid REFERENCES dbo.clientaccesstokens); INSERT INTO child SELECT id FROM dbo.clientaccesstokens WHERE expiration <= now() AT TIME ZONE 'UTC'", "ALTER TABLE [^;]* DROP CONSTRAINT .*;"},
		"one that takes live ones": {`ALTER TABLE dbo.clientaccesstokens ADD parent uuid REFERENCES dbo.clientaccesstokens ON DELETE CASCADE;
			UPDATE dbo.clientaccesstokens SET parent = (SELECT id FROM dbo.clientaccesstokens ORDER BY expiration LIMIT 1) WHERE expiration > now() AT TIME ZONE 'UTC'`, "ALTER TABLE [^;]* DROP CONSTRAINT .*;"},
		"one that takes expired ones": {`ALTER TABLE dbo.clientaccesstokens ADD parent uuid REFERENCES dbo.clientaccesstokens ON DELETE CASCADE;
			UPDATE dbo.clientaccesstokens SET parent = (SELECT id FROM dbo.clientaccesstokens ORDER BY expiration LIMIT 1) WHERE id IN (SELECT id FROM dbo.clientaccesstokens ORDER BY expiration OFFSET 2000 LIMIT 10)`, ""},
		"nothing": {"", ""},
	}
	if one[int](t, connect(t, "postgres"), "SELECT current_setting('server_version_num')::int") >= 15_00_00 {
		maps.Copy(cases, map[string]struct{ stage, mend string }{
			"published on a condition":  {"CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens WHERE (expiration > '2020-01-01')", "ALTER TABLE .*;"},
			"published by its key":      {"CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens WHERE (id > '00000000-0000-0000-0000-000000000000')", ""},
			"a column of it published":  {"CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens (expiration)", "ALTER PUBLICATION .*;"},
			"columns and key published": {"CREATE PUBLICATION p FOR TABLE dbo.clientaccesstokens (id, expiration)", ""},
			"its schema published":      {"CREATE PUBLICATION p FOR TABLES IN SCHEMA dbo; ALTER TABLE dbo.clientaccesstokens REPLICA IDENTITY NOTHING", "ALTER TABLE .*;"},
		})
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "parity", "")
			db := filled(t, s)
			must(t, db.conn, c.stage)
			checked := act(t, s.server(), db.name, purge.Check)
			purged := run(t, s.server(), db.name)
			if purged.Status != checked.Status || (purged.Status == purge.Failed) != (c.mend != "") {
				t.Fatalf("a check is %s, a purge %s\n%s\n%s", checked.Status, purged.Status, checked.Error, purged.Error)
			}
			if c.mend == "" {
				return
			}
			mend := regexp.MustCompile(c.mend).FindString(checked.Error + "\n" + text(checked.Findings))
			if mend == "" {
				t.Fatalf("no %s in %s", c.mend, text(checked.Findings))
			}
			first, _, _ := strings.Cut(mend, "; or ")
			must(t, db.conn, strings.ReplaceAll(first, "edfi_token_purge", "parity"))
			checked, purged = act(t, s.server(), db.name, purge.Check), run(t, s.server(), db.name)
			if purged.Status != purge.Complete || checked.Status != purge.Complete {
				t.Errorf("after %s a check is %s, a purge %s\n%s\n%s", first, checked.Status, purged.Status, checked.Error, purged.Error)
			}
		})
	}
}

// A run may be too short to read a table without an index: it begins where the rows
// are, goes around the end, and leaves nothing out.
func TestWithoutAnIndexARunBeginsWhereTheRowsAre(t *testing.T) {
	s := newStage(t, "wrapping", "GRANT SELECT ON dbo.clientaccesstokens TO wrapping")
	db := s.create(t)
	must(t, db.conn, "DROP INDEX dbo.ix_clientaccesstokens_expiration; ALTER TABLE dbo.clientaccesstokens SET (fillfactor = 10)")
	must(t, db.conn, "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), now() AT TIME ZONE 'UTC' + CASE WHEN n <= 7 OR n > 90000 THEN interval '-1 hour' ELSE interval '1 hour' END FROM generate_series(1, 120000) AS n")
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	c := opened.(*conn)
	pages, _ := c.pages(t.Context())
	w, err := c.everyPlace(t.Context(), c.Expired(time.Time{}, db.Now(t)).(window))
	if first := w.lower.BlockNumber; err != nil || first < pages/2 || w.wrap != first {
		t.Errorf("it begins on page %d of %d, and goes on before page %d: %v", first, pages, w.wrap, err)
	}
	opened.Close()
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 30_007 {
		t.Errorf("%+v", r)
	}
}

// With the least rights and no index, where even one reading of the table does not fit
// into the time, rows are deleted as they are met.
func TestRowsOfATableThatTakesTooLongToReadGoAsTheyAreMet(t *testing.T) {
	s := newStage(t, "meeting", withoutPlaces)
	db := filled(t, s)
	must(t, db.conn, "DROP INDEX dbo.ix_clientaccesstokens_expiration")
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var deleted int64
	for more := true; more; {
		cut, rest, err := opened.Cut(ctx, (metRows{opened.(*conn)}).Expired(time.Time{}, db.Now(t)), 300, 8)
		if err != nil || len(cut) != 1 || rest != nil {
			t.Fatal(cut, rest, err)
		}
		cut[0].Most = 300
		gone, err := opened.Delete(ctx, cut[0])
		if err != nil || gone.Rows > 300 {
			t.Fatal(gone, err)
		}
		deleted, more = deleted+gone.Rows, gone.More
	}
	if expired, live := db.counts(t); deleted != rows || expired != 0 || live != 10 {
		t.Errorf("%d deleted, %d expired and %d live left", deleted, expired, live)
	}
}

// What holds deleted rows is told with the statement that ends it.
func TestAnOldSnapshotIsToldWithItsHolder(t *testing.T) {
	s := newStage(t, "holding", "")
	db := filled(t, s)
	holder := connect(t, db.name)
	must(t, holder, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	found, err := opened.(purge.LookExplainer).WhySlow(t.Context())
	want := fmt.Sprintf("SELECT pg_terminate_backend(%d);", holder.PgConn().PID())
	if err != nil || len(found) != 1 || found[0].Code != purge.OldSnapshot.Code || !strings.Contains(found[0].Message, want) {
		t.Errorf("%+v, %v, want %s", found, err, want)
	}
}

// A standby reports the oldest snapshot of its own sessions. Its slot keeps that, also once
// the standby is gone.
func TestAnOldSnapshotOfAStandbyIsToldWithItsSlot(t *testing.T) {
	t.Parallel()
	_, s, admin := ownServer(t, pgserver.Options{Settings: map[string]string{"wal_level": "replica", "max_wal_senders": "2"}})
	must(t, admin, "SELECT pg_create_physical_replication_slot('standby', true)")
	opened, err := s.Open(t.Context(), "postgres", purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	standby := reportsSnapshot(t, s, "standby", one[uint32](t, admin, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"))
	tell := func(want string) {
		t.Helper()
		var message string
		for patience := time.Now().Add(10 * time.Second); time.Now().Before(patience); time.Sleep(10 * time.Millisecond) {
			found, err := opened.(purge.LookExplainer).WhySlow(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if message = found[0].Message; strings.Contains(message, want) {
				return
			}
		}
		t.Errorf("%s; want %s", message, want)
	}
	tell("a session on the standby of replication slot 'standby'. To end that: on the standby: SELECT pg_terminate_backend(pid) FROM")
	standby.Close(t.Context()) //nolint:errcheck // it goes as it likes
	tell("replication slot 'standby', which nobody uses. To end that: SELECT pg_drop_replication_slot('standby');")
	must(t, admin, "SELECT pg_drop_replication_slot('standby')")
	tell("nothing that this login can see")
}

// reportsSnapshot follows a server as a standby does that has a session with an old
// snapshot.
func reportsSnapshot(t *testing.T, s Server, slot string, xmin uint32) *pgconn.PgConn {
	t.Helper()
	c := conn{server: s, database: "postgres", startup: map[string]string{"replication": "true"}}
	config, err := c.config()
	if err != nil {
		t.Fatal(err)
	}
	standby, err := pgconn.ConnectConfig(t.Context(), &config.Config)
	if err != nil {
		t.Fatal(err)
	}
	at, err := standby.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	wire := standby.Frontend()
	wire.SendQuery(&pgproto3.Query{String: fmt.Sprintf("START_REPLICATION SLOT %s PHYSICAL %s", slot, at[0].Rows[0][2])})
	if err := wire.Flush(); err != nil {
		t.Fatal(err)
	}
	if answer, err := standby.ReceiveMessage(t.Context()); err != nil {
		t.Fatal(err)
	} else if _, ok := answer.(*pgproto3.CopyBothResponse); !ok {
		t.Fatalf("%T", answer)
	}
	feedback := []byte{'h', 0, 0, 0, 0, 0, 0, 0, 0} // the time, which nobody reads
	for _, n := range []uint32{xmin, 0, 0, 0} {     // xmin and its epoch, those of the catalogue
		feedback = binary.BigEndian.AppendUint32(feedback, n)
	}
	wire.Send(&pgproto3.CopyData{Data: feedback})
	if err := wire.Flush(); err != nil {
		t.Fatal(err)
	}
	return standby
}

// An error that no other connection mends is told once: neither is it tried again, nor
// does it count as a row that resists.
func TestWhatIsNoLostConnectionIsAnErrorOnce(t *testing.T) {
	s := newStage(t, "once", "")
	db := filled(t, s)
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	c := opened.(*conn)
	for _, err := range []error{
		&pgconn.PgError{Code: pgerrcode.DiskFull}, &pgconn.PgError{Code: pgerrcode.OutOfMemory}, &pgconn.PgError{Code: pgerrcode.ConfigurationLimitExceeded},
		&pgconn.PgError{Code: pgerrcode.DiskFull, Where: "PL/pgSQL function f() line 1 at SQL statement"}, errors.New("cannot encode int into binary format"),
	} {
		got := c.explain("delete", err)
		for _, other := range []error{purge.ErrLost, purge.ErrRefused, purge.ErrLocked, purge.ErrChanged} {
			if errors.Is(got, other) {
				t.Errorf("%v: %v", err, got)
			}
		}
	}
	for _, err := range []error{
		io.EOF, fmt.Errorf("receive: %w", io.ErrUnexpectedEOF), net.ErrClosed, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, errEnded,
		&pgconn.PgError{Code: pgerrcode.AdminShutdown}, &pgconn.PgError{Code: pgerrcode.CrashShutdown},
		&pgconn.PgError{Code: pgerrcode.ConnectionFailure}, &pgconn.PgError{Code: "25P04", Severity: "FATAL"},
	} {
		if got := c.explain("delete", err); !errors.Is(got, purge.ErrLost) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

func TestBothUsersOfARotationHaveTheRights(t *testing.T) {
	s, clone := newStage(t, "rotated", ""), newStage(t, "rotated_clone", "")
	db := s.create(t)
	for _, s := range []stage{s, clone} {
		db.Insert(t, db.Now(t).Add(-time.Hour))
		if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
			t.Errorf("%s: %+v", s.role, r)
		}
	}
}

func TestADatabaseOfEdFi2IsRefused(t *testing.T) {
	s := newStage(t, "old", "")
	db := filled(t, s)
	must(t, db.conn, "CREATE FUNCTION dbo.accesstokenisvalid(uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
	for _, action := range []purge.Action{purge.Purge, purge.DryRun, purge.Check} {
		if r := act(t, s.server(), db.name, action); r.Status != purge.Failed || !strings.Contains(r.Error, "Ed-Fi ODS/API 2.x") {
			t.Errorf("%s: %+v", action, r)
		}
	}
}

func TestALiveRowUnderAScanStays(t *testing.T) {
	s := newStage(t, "moving", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	must(t, db.conn, "DROP INDEX dbo.ix_clientaccesstokens_expiration")
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cut, _, err := opened.Cut(ctx, metRows{opened.(*conn)}.Expired(time.Time{}, db.Now(t)), 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	other := connect(t, db.name)
	must(t, other, "BEGIN; UPDATE dbo.clientaccesstokens SET expiration = now() AT TIME ZONE 'UTC' + interval '1 hour'")
	var committing sync.WaitGroup
	committing.Go(func() {
		time.Sleep(150 * time.Millisecond)         // less than the wait for a lock
		other.Exec(context.Background(), "COMMIT") //nolint:errcheck // the row tells
	})
	gone, err := opened.Delete(ctx, cut[0])
	committing.Wait()
	if _, live := db.counts(t); live != 1 || gone.Rows != 0 || err != nil && !errors.Is(err, purge.ErrLocked) {
		t.Errorf("%d live rows, %+v, %v", live, gone, err)
	}
}

// metFirst is an engine that deletes rows as they are met, as it does in a table that takes
// too long to read.
type metFirst struct{ Server }

func (m metFirst) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	opened, err := m.Server.Open(ctx, database, table, lock)
	if err != nil {
		return nil, err
	}
	return metRows{opened.(*conn)}, nil
}

// metRows is a connection to a table that takes too long to read.
type metRows struct{ *conn }

func (m metRows) Expired(after, cutoff time.Time) purge.Window {
	w := m.conn.Expired(after, cutoff).(window)
	w.tooLarge = true
	return w
}

func TestRowsThatResistAreCountedOnceBySeveralConnections(t *testing.T) {
	s := newStage(t, "meeting_at_once", withoutPlaces)
	db := filled(t, s)
	must(t, db.conn, `
DROP INDEX dbo.ix_clientaccesstokens_expiration;
CREATE TABLE dbo.audit AS SELECT id FROM dbo.clientaccesstokens WHERE expiration < now() AT TIME ZONE 'UTC' LIMIT 5;
ALTER TABLE dbo.audit ADD FOREIGN KEY (id) REFERENCES dbo.clientaccesstokens`)
	to := target(s.server(), db.name)
	to.Engine = metFirst{s.server()}
	r := purge.Run(t.Context(), to, purge.Policy{Action: purge.Purge, BatchSize: 100, Concurrency: 3}, func(purge.DatabaseResult) {}).Databases[0]
	if expired, live := db.counts(t); r.Status != purge.Failed || r.DeletedRows != rows-5 || expired != 5 || live != 10 || !strings.Contains(r.Error, "5 rows stay, and all others are deleted") {
		t.Errorf("%+v; %d expired and %d live left", r, expired, live)
	}
}

func TestARowThatIsLockedBesideOneThatIsRefusedIsTriedAgain(t *testing.T) {
	s := newStage(t, "meeting_both", withoutPlaces)
	db := filled(t, s)
	const ends = "SELECT id FROM dbo.clientaccesstokens WHERE expiration < now() AT TIME ZONE 'UTC' ORDER BY ctid"
	must(t, db.conn, `
DROP INDEX dbo.ix_clientaccesstokens_expiration;
CREATE TABLE dbo.audit AS `+ends+` DESC LIMIT 1;
ALTER TABLE dbo.audit ADD FOREIGN KEY (id) REFERENCES dbo.clientaccesstokens`)
	other := connect(t, db.name)
	must(t, other, "BEGIN; SELECT FROM dbo.clientaccesstokens WHERE id = ("+ends+" LIMIT 1) FOR UPDATE")
	to := target(s.server(), db.name)
	to.Engine = metFirst{s.server()}
	var gone atomic.Int64
	to.Deleted = func(_ string, rows int64) { gone.Add(rows) }
	ctx, cancel := context.WithCancel(t.Context())
	var releasing sync.WaitGroup
	releasing.Go(func() {
		for gone.Load() < rows-2 && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(500 * time.Millisecond)
		other.Exec(context.Background(), "COMMIT") //nolint:errcheck // the row says it
	})
	r := purge.Run(t.Context(), to, purge.Policy{Action: purge.Purge, BatchSize: 500}, func(purge.DatabaseResult) {}).Databases[0]
	cancel()
	releasing.Wait()
	if expired, live := db.counts(t); r.Status != purge.Failed || r.DeletedRows != rows-1 || expired != 1 || live != 10 || !strings.Contains(r.Error, "1 row stays, and all others are deleted") {
		t.Errorf("%+v; %d expired and %d live left", r, expired, live)
	}
}

func TestADeferredTriggerThatPutsRowsBackIsNotCounted(t *testing.T) {
	s := newStage(t, "deferring", "")
	db := filled(t, s)
	must(t, db.conn, "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO dbo.clientaccesstokens VALUES (OLD.*); RETURN NULL; END'; CREATE CONSTRAINT TRIGGER back AFTER DELETE ON dbo.clientaccesstokens DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION back()")
	r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 500}, nil)
	if expired, live := db.counts(t); r.Status != purge.Failed || r.DeletedRows != 0 || expired != rows || live != 10 {
		t.Errorf("%s, %d counted, %d expired and %d live left: %s", r.Status, r.DeletedRows, expired, live, r.Error)
	}
}
