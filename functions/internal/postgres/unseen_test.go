package postgres

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

// putBack is a function of triggers that puts back what was deleted, when told at the
// commit.
const putBack = "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO dbo.clientaccesstokens VALUES (OLD.*); RETURN NULL; END'; "

// A batch counts what is gone at its commit, also where what happens there has come in
// the middle of a run.
func TestADeferredTriggerThatComesInTheMiddleOfARunIsNoticed(t *testing.T) {
	const deferred = " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION back()"
	for name, c := range map[string]struct{ before, middle string }{
		"on the table": {putBack, "CREATE CONSTRAINT TRIGGER back AFTER DELETE ON dbo.clientaccesstokens" + deferred},
		"on a child": {
			putBack + "CREATE TABLE dbo.child () INHERITS (dbo.clientaccesstokens); WITH moved AS (DELETE FROM ONLY dbo.clientaccesstokens RETURNING *) INSERT INTO dbo.child SELECT * FROM moved; CREATE INDEX ON dbo.child (expiration)",
			"CREATE CONSTRAINT TRIGGER back AFTER DELETE ON dbo.child" + deferred,
		},
		"where a foreign key leads": {
			"CREATE TABLE child AS SELECT * FROM dbo.clientaccesstokens; CREATE INDEX ON child (id); " + putBack,
			"ALTER TABLE child ADD FOREIGN KEY (id) REFERENCES dbo.clientaccesstokens ON DELETE CASCADE NOT VALID; CREATE CONSTRAINT TRIGGER back AFTER DELETE ON child" + deferred,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "noticing", "")
			db := filled(t, s)
			must(t, db.conn, c.before)
			r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 100, MaxDuration: 20 * time.Second}, func() { must(t, db.conn, c.middle) })
			if expired, live := db.counts(t); r.DeletedRows != rows-expired || (r.Status == purge.Complete) != (expired == 0) || live != 10 {
				t.Errorf("%s, %d counted, %d expired and %d live left: %s", r.Status, r.DeletedRows, expired, live, r.Error)
			}
		})
	}
}

// A policy may be for a role that the login is given in the middle of a run. What was
// planned before does not know of it.
func TestAPolicyThatComesToConcernTheLoginIsNoticed(t *testing.T) {
	s := newStage(t, "concerned", "")
	db := filled(t, s)
	must(t, db.conn, `DROP ROLE IF EXISTS few; CREATE ROLE few; ALTER TABLE dbo.clientaccesstokens ENABLE ROW LEVEL SECURITY;
CREATE POLICY everything ON dbo.clientaccesstokens USING (true); CREATE POLICY half ON dbo.clientaccesstokens AS RESTRICTIVE TO few USING (id::text < '8')`)
	r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 100, MaxDuration: 20 * time.Second}, func() { must(t, db.conn, "GRANT few TO concerned") })
	if expired, live := db.counts(t); r.Status != purge.Failed || r.DeletedRows != rows-expired || live != 10 || !strings.Contains(text(r.Findings), "error row-security") {
		t.Errorf("%+v; %d expired and %d live left", r, expired, live)
	}
}

// Where the server keeps no count, the batch holds its bound and counts all the same, in
// each way that rows are deleted; where something else acts on deletes, nobody could.
func TestWithoutTheServersCountABatchHoldsItsBoundAndItsCount(t *testing.T) {
	s := newStage(t, "uncounting", "")
	must(t, connect(t, "postgres"), "ALTER ROLE uncounting SET track_counts = off")
	for name, stage := range map[string]string{
		"by index":     "SELECT 1",
		"by place":     "DROP INDEX dbo.ix_clientaccesstokens_expiration; GRANT SELECT ON dbo.clientaccesstokens TO uncounting",
		"as it is met": "UPDATE dbo.clientaccesstokens SET expiration = '2020-01-01' WHERE expiration < now() AT TIME ZONE 'UTC'",
	} {
		t.Run(name, func(t *testing.T) {
			db := filled(t, s)
			must(t, db.conn, stage)
			left := func() int64 { expired, _ := db.counts(t); return expired }
			before := int64(0)
			r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 500, MaxRows: 2000, MaxDuration: 20 * time.Second}, func() {
				before = 20 * left()
				must(t, db.conn, "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), expiration + make_interval(secs => n * 0.001) FROM dbo.clientaccesstokens, generate_series(1, 20) AS n WHERE expiration < now() AT TIME ZONE 'UTC'")
			})
			if before += rows; r.DeletedRows != 2000 || before-left() != 2000 || !strings.Contains(text(r.Findings), "warning counts-unproved") {
				t.Errorf("%d rows counted, %d gone, %s / %s: %s\n%s", r.DeletedRows, before-left(), r.Status, r.StopReason, r.Error, text(r.Findings))
			}
			must(t, db.conn, putBack+"CREATE TRIGGER back AFTER DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION back()")
			stay := left()
			for _, action := range []purge.Action{purge.Check, purge.Purge} {
				if r := act(t, s.server(), db.name, action); r.Status != purge.Failed || r.DeletedRows != 0 || left() != stay || !strings.Contains(text(r.Findings), "error counts-unproved") {
					t.Errorf("%s: %s, %d counted, %d of %d left: %s", action, r.Status, r.DeletedRows, left(), stay, r.Error)
				}
			}
		})
	}
}

// The statements of the finding are run as they are, whatever has which name already.
func TestTheIndexesThatAreMissingAreCreatedByTheFinding(t *testing.T) {
	const partitioned = `ALTER TABLE dbo.clientaccesstokens RENAME TO old; DROP INDEX dbo.ix_clientaccesstokens_expiration;
CREATE TABLE dbo.clientaccesstokens (LIKE dbo.old) PARTITION BY HASH (id);
GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO indexing`
	parts := func(n int) string {
		sql := partitioned
		for i := range n {
			sql += fmt.Sprintf("; CREATE TABLE dbo.\"Part %d\" PARTITION OF dbo.clientaccesstokens FOR VALUES WITH (MODULUS %d, REMAINDER %[1]d)", i, n)
		}
		return sql + "; CREATE INDEX ON dbo.\"Part 0\" (expiration); INSERT INTO dbo.clientaccesstokens SELECT * FROM dbo.old"
	}
	for name, c := range map[string]struct {
		stage  string
		rounds int
	}{
		"the name is taken":     {"DROP INDEX dbo.ix_clientaccesstokens_expiration; CREATE TABLE dbo.ix_clientaccesstokens_expiration (); CREATE TABLE dbo.clientaccesstokens_expiration_idx ()", 1},
		"the name is another's": {"DROP INDEX dbo.ix_clientaccesstokens_expiration; CREATE INDEX ix_clientaccesstokens_expiration ON dbo.clientaccesstokens (expiration) WHERE expiration > '2020-01-01'", 1},
		"a child":               {"CREATE TABLE dbo.child () INHERITS (dbo.clientaccesstokens)", 1},
		"partitions":            {parts(3), 1},
		"many partitions":       {parts(30), 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "indexing", "")
			db := filled(t, s)
			must(t, db.conn, c.stage)
			for range c.rounds {
				found := text(check(t, s, db.name))
				mends := regexp.MustCompile("CREATE INDEX [^;]*;").FindAllString(found, -1)
				if len(mends) == 0 || len(mends) > 20 {
					t.Fatalf("%d statements in %s", len(mends), found)
				}
				for _, mend := range mends {
					must(t, db.conn, mend)
				}
			}
			if found := text(check(t, s, db.name)); strings.Contains(found, "missing-expiration-index") {
				t.Error(found)
			}
			if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != rows {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestAPartThatIsAForeignTableIsTold(t *testing.T) {
	s := newStage(t, "foreign_part", "")
	db := filled(t, s)
	must(t, db.conn, "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER elsewhere FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE dbo.part () INHERITS (dbo.clientaccesstokens) SERVER elsewhere")
	for _, action := range []purge.Action{purge.Purge, purge.DryRun, purge.Check} {
		if r := act(t, s.server(), db.name, action); r.Status != purge.Failed || !strings.Contains(r.Error, "a part that is a foreign table") {
			t.Errorf("%s: %s, %s", action, r.Status, r.Error)
		}
	}
}

// A purge and a check say by name what keeps or refuses rows, with the statement that
// ends it.
func TestRowsThatStayComeWithTheStatementThatMends(t *testing.T) {
	const keep = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
	const no = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not this one'; END$$; "
	for name, c := range map[string]struct{ stage, code, mend string }{
		"a trigger that keeps":   {keep + `CREATE TRIGGER "Keep it" BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION keep()`, "kept-rows", `ALTER TABLE dbo.clientaccesstokens DISABLE TRIGGER "Keep it";`},
		"a trigger of a child":   {keep + `CREATE TABLE dbo."Child" () INHERITS (dbo.clientaccesstokens); INSERT INTO dbo."Child" SELECT * FROM dbo.clientaccesstokens LIMIT 5; CREATE TRIGGER keep BEFORE DELETE ON dbo."Child" FOR EACH ROW EXECUTE FUNCTION keep()`, "kept-rows", `ALTER TABLE dbo."Child" DISABLE TRIGGER keep;`},
		"a rule":                 {"CREATE RULE keep AS ON DELETE TO dbo.clientaccesstokens DO INSTEAD NOTHING", "kept-rows", "ALTER TABLE dbo.clientaccesstokens DISABLE RULE keep;"},
		"a trigger that refuses": {no + "CREATE TRIGGER no BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION no()", "refused-rows", "ALTER TABLE dbo.clientaccesstokens DISABLE TRIGGER no;"},
		"a foreign key":          {`CREATE TABLE child (id uuid CONSTRAINT "of token" REFERENCES dbo.clientaccesstokens); INSERT INTO child SELECT id FROM dbo.clientaccesstokens WHERE expiration < now() AT TIME ZONE 'UTC'`, "refused-rows", `ALTER TABLE public.child DROP CONSTRAINT "of token";`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "staying", "")
			db := s.create(t)
			db.Insert(t, db.Now(t).Add(-time.Hour), db.Now(t).Add(-time.Hour), db.Now(t).Add(time.Hour))
			must(t, db.conn, c.stage)
			for _, action := range []purge.Action{purge.Check, purge.Purge} {
				r := act(t, s.server(), db.name, action)
				at := slices.IndexFunc(r.Findings, func(f purge.Finding) bool { return f.Code == c.code && f.Level == purge.LevelError })
				if r.Status != purge.Failed || !strings.Contains(r.Error, c.mend) || at < 0 || !strings.Contains(r.Findings[at].Message, c.mend) {
					t.Errorf("%s: %s, %s\n%s", action, r.Status, r.Error, text(r.Findings))
				}
			}
			must(t, db.conn, c.mend)
			if r := run(t, s.server(), db.name); r.Status != purge.Complete {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestExpirationsThatADeletePutsOffAreTold(t *testing.T) {
	s := newStage(t, "put_off", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour), db.Now(t).Add(-time.Hour), db.Now(t).Add(time.Hour))
	const mend = "ALTER TABLE dbo.clientaccesstokens DISABLE TRIGGER put_off;"
	must(t, db.conn, `
CREATE FUNCTION put_off() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
$$BEGIN UPDATE dbo.clientaccesstokens SET expiration = 'infinity' WHERE id = OLD.id; RETURN NULL; END$$;
CREATE TRIGGER put_off BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION put_off()`)
	r := run(t, s.server(), db.name)
	at := slices.IndexFunc(r.Findings, func(f purge.Finding) bool {
		return f.Code == purge.KeptRows.Code && f.Level == purge.LevelWarning
	})
	if r.Status != purge.Complete || r.DeletedRows != 0 || at < 0 || !strings.Contains(r.Findings[at].Message, mend) {
		t.Errorf("%+v", r)
	}
	if r = run(t, s.server(), db.name); strings.Contains(text(r.Findings), purge.KeptRows.Code) {
		t.Errorf("nothing had expired: %+v", r)
	}
}

// With the least rights many rows of one expiration go as they are met; those that
// resist, wherever they are, stop no other.
func TestRowsThatAreMetAndResistStopNoOther(t *testing.T) {
	const first = "SELECT id FROM dbo.clientaccesstokens WHERE expiration = '2020-01-01' ORDER BY ctid LIMIT 3"
	const trigger = "CREATE TABLE keep AS " + first + "; GRANT SELECT ON keep TO PUBLIC; CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF EXISTS (SELECT FROM public.keep WHERE id = OLD.id) THEN %s; END IF; RETURN OLD; END$$; CREATE TRIGGER no BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION no()"
	for name, c := range map[string]struct {
		stage, says string
		status      purge.Status
	}{
		"refused by a trigger":      {fmt.Sprintf(trigger, "RAISE 'not this one'"), "3 rows stay, and all others are deleted", purge.Failed},
		"refused by a foreign key":  {"CREATE TABLE child (id uuid REFERENCES dbo.clientaccesstokens); INSERT INTO child " + first, "3 rows stay, and all others are deleted", purge.Failed},
		"refused by one that waits": {"CREATE TABLE child (id uuid REFERENCES dbo.clientaccesstokens DEFERRABLE INITIALLY DEFERRED); INSERT INTO child " + first, "3 rows stay, and all others are deleted", purge.Failed},
		"kept":                      {fmt.Sprintf(trigger, "RETURN NULL"), "DELETE does not remove", purge.Failed},
		"locked":                    {"", "", purge.Partial},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "resisting", withoutPlaces)
			db := filled(t, s)
			must(t, db.conn, "UPDATE dbo.clientaccesstokens SET expiration = '2020-01-01' WHERE expiration < now() AT TIME ZONE 'UTC'")
			must(t, db.conn, c.stage)
			if name == "locked" {
				other := connect(t, db.name)
				must(t, other, "BEGIN; SELECT FROM dbo.clientaccesstokens WHERE id IN ("+first+") FOR UPDATE")
			}
			r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 500, MaxDuration: 10 * time.Second, StopBefore: time.Second}, nil)
			expired, live := db.counts(t)
			if r.Status != c.status || r.DeletedRows != rows-3 || expired != 3 || live != 10 || !strings.Contains(r.Error, c.says) {
				t.Errorf("%s / %s, %d counted, %d expired and %d live left: %s", r.Status, r.StopReason, r.DeletedRows, expired, live, r.Error)
			}
			if name == "locked" && !strings.Contains(text(r.Findings), "locked-rows") {
				t.Error(text(r.Findings))
			}
		})
	}
}

// A batch whose time is over before it met a row that goes has not met all.
func TestRowsThatAreRefusedSlowlyStopNoOther(t *testing.T) {
	s := newStage(t, "resisting_slowly", withoutPlaces)
	db := s.create(t)
	db.Insert(t, slices.Repeat([]time.Time{db.Now(t).Add(-time.Hour)}, 10)...)
	must(t, db.conn, `
CREATE TABLE keep AS SELECT id FROM dbo.clientaccesstokens ORDER BY ctid LIMIT 3;
GRANT SELECT ON keep TO PUBLIC;
CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF EXISTS (SELECT FROM public.keep WHERE id = OLD.id) THEN PERFORM pg_sleep(0.15); RAISE 'not this one'; END IF; RETURN OLD; END$$;
CREATE TRIGGER no BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION no()`)
	r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 3, BatchTarget: 50 * time.Millisecond}, nil)
	if expired, _ := db.counts(t); r.Status != purge.Failed || r.DeletedRows != 7 || expired != 3 || !strings.Contains(r.Error, "3 rows stay, and all others are deleted") {
		t.Errorf("%+v, %d expired left", r, expired)
	}
}

// A row whose delete is canceled in the middle of a batch stays, and is not counted.
func TestARowThatIsCanceledAsItIsMetIsNotCounted(t *testing.T) {
	s := newStage(t, "canceled_as_met", withoutPlaces)
	db := s.create(t)
	db.Insert(t, slices.Repeat([]time.Time{db.Now(t).Add(-time.Hour)}, 10)...)
	must(t, db.conn, `
CREATE TABLE acts AS SELECT id, row_number() OVER (ORDER BY ctid) AS number FROM dbo.clientaccesstokens;
CREATE SEQUENCE tries;
GRANT SELECT ON acts TO PUBLIC;
GRANT USAGE ON tries TO PUBLIC;
CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$DECLARE met bigint := (SELECT number FROM public.acts WHERE id = OLD.id); BEGIN
    IF met = 1 THEN RAISE 'not this one'; END IF;
    IF met = 5 THEN
        IF nextval('public.tries') <= 2 THEN PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(10); END IF;
    END IF;
    RETURN NULL;
END$$;
CREATE TRIGGER act AFTER DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION act()`)
	r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 5}, nil)
	if expired, _ := db.counts(t); r.Status != purge.Failed || r.DeletedRows != 9 || expired != 1 || one[int64](t, db.conn, "SELECT last_value FROM tries") < 3 {
		t.Errorf("%+v, %d expired left", r, expired)
	}
}

// Where the login may see it, whatever holds deleted rows is named.
func TestAPreparedTransactionIsNamedAsTheHolder(t *testing.T) {
	own, err := pgserver.Start(t.Context(), pgserver.Options{Own: true, Settings: map[string]string{"fsync": "off", "max_prepared_transactions": "2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Stop() //nolint:errcheck // the test has spoken
	if err := edfi.CreateDatabase(t.Context(), own.URL("postgres"), "held"); err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), own.URL("held"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context()) //nolint:errcheck // nothing is under way
	if err := edfi.CreateSchema(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	must(t, admin, "CREATE ROLE seeing LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA dbo TO seeing; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO seeing")
	must(t, admin, "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'left behind'")
	s := Server{Host: own.Host, Port: own.Port, User: redact.NewSecret("seeing"), Password: redact.NewSecret("x"), LockTimeout: time.Second}
	opened, err := s.Open(t.Context(), "held", purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	found, err := opened.(purge.LookExplainer).WhySlow(t.Context())
	if err != nil || len(found) != 1 || !strings.Contains(found[0].Message, "ROLLBACK PREPARED 'left behind';") {
		t.Errorf("%+v, %v", found, err)
	}
}

// A table that takes ten times as long to read as a run lasts, on any machine: each
// comparison that no index makes sleeps. Rows go in each run all the same.
func TestWhateverAReadingTakesRowsGoInEachRun(t *testing.T) {
	const slow = `CREATE FUNCTION slow(timestamp, timestamp) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.015); RETURN pg_catalog.timestamp_ge($1, $2); END';
UPDATE pg_operator SET oprcode = 'public.slow'::regproc WHERE oid = '>=(timestamp,timestamp)'::regoperator`
	for role, right := range map[string]string{"least_sleeping": "", "reader_sleeping": "GRANT SELECT ON dbo.clientaccesstokens TO {role}"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel() // they sleep
			s := newStage(t, role, right)
			db := filled(t, s)
			must(t, db.conn, "DROP INDEX dbo.ix_clientaccesstokens_expiration")
			must(t, db.conn, slow)
			deleted := int64(0)
			for range 3 {
				r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 1000, BatchTarget: 750 * time.Millisecond, MaxDuration: 6 * time.Second}, nil)
				if deleted += r.DeletedRows; r.Status != purge.Partial || r.DeletedRows == 0 {
					t.Errorf("%s / %s, %d rows: %s", r.Status, r.StopReason, r.DeletedRows, r.Error)
				}
			}
			must(t, db.conn, "UPDATE pg_operator SET oprcode = 'pg_catalog.timestamp_ge'::regproc WHERE oid = '>=(timestamp,timestamp)'::regoperator")
			if expired, live := db.counts(t); expired != rows-deleted || live != 10 {
				t.Errorf("%d counted, %d expired and %d live left", deleted, expired, live)
			}
			if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != rows-deleted {
				t.Errorf("%+v", r)
			}
		})
	}
}

// Deleted rows that an old snapshot holds are passed over, and what that costs is bounded
// as docs/how-it-works.md says, also where new rows expire among them: the worst case.
func TestTwentyRunsUnderAnOldSnapshotCostWhatIsStated(t *testing.T) {
	s := newStage(t, "twenty", "")
	db := s.create(t)
	must(t, db.conn, "ALTER TABLE dbo.clientaccesstokens SET (autovacuum_enabled = false)")
	holder := connect(t, db.name)
	must(t, holder, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
	read := func() int64 {
		return one[int64](t, connect(t, db.name), "SELECT heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0) FROM pg_statio_user_tables WHERE relid = 'dbo.clientaccesstokens'::regclass")
	}
	settled := func() int64 {
		for before := read(); ; {
			time.Sleep(600 * time.Millisecond)
			after := read()
			if after == before {
				return after
			}
			before = after
		}
	}
	const each = 5000
	for n := range 20 {
		must(t, db.conn, fmt.Sprintf("INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), now() AT TIME ZONE 'UTC' - interval '1 day' + make_interval(secs => n * 0.01) FROM generate_series(1, %d) AS n", each))
		before := settled()
		r := run(t, s.server(), db.name)
		pages := settled() - before
		const once = 5000 // examining the table, and the pages of its index above the leaves
		if bound := int64(4*each*(n+1) + once); r.Status != purge.Complete || r.DeletedRows != each || pages > bound {
			t.Errorf("run %d: %d pages, at most %d: %+v", n, pages, bound, r)
		}
	}
	if left := len(db.Expirations(t)); left != 0 {
		t.Errorf("%d rows are left", left)
	}
}
