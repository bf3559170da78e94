package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

// What a role may have set, each of which would end or bend a session. They hold for
// the very first statement, so the times are long enough for a slow machine to send it.
var settings = map[string]string{
	"statement_timeout":                   "3s",
	"lock_timeout":                        "3s",
	"idle_in_transaction_session_timeout": "3s",
	"idle_session_timeout":                "3s", // 14 and later
	"default_transaction_isolation":       "serializable",
	"default_transaction_deferrable":      "on",
	"row_security":                        "off",
	"search_path":                         "evil, pg_catalog",
	"client_encoding":                     "LATIN1",
	"DateStyle":                           "SQL, DMY",
	"IntervalStyle":                       "sql_standard",
	"TimeZone":                            "Pacific/Kiritimati",
	"bytea_output":                        "escape",
	"standard_conforming_strings":         "off",
	"session_replication_role":            "origin",
	"synchronous_commit":                  "remote_apply",
	"enable_indexscan":                    "off",
	"quote_all_identifiers":               "on",
	"extra_float_digits":                  "-15",
}

func TestSettingsOfTheRoleDoNotHoldForTheSession(t *testing.T) {
	s := newStage(t, "purge_settings", "")
	admin := connect(t, "postgres")
	var all []string
	for name, value := range settings {
		if name == "idle_session_timeout" && one[int](t, admin, "SELECT current_setting('server_version_num')::int") < 14_00_00 {
			continue
		}
		set := fmt.Sprintf("ALTER ROLE purge_settings SET %s = %s;", name, strings.ReplaceAll(quote(value), ", ", "', '"))
		all = append(all, set)
	}
	for _, set := range append(all, strings.Join(all, "")) {
		must(t, admin, set)
		db := s.create(t)
		// An operator and a function of the role's own schema, which it would find first.
		must(t, db.conn, `CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT 1/0::text::int';
CREATE FUNCTION evil.always(timestamp, timestamp) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR evil.< (LEFTARG = timestamp, RIGHTARG = timestamp, FUNCTION = evil.always);`)
		must(t, db.conn, `CREATE TABLE evil.held (name text, value text);
CREATE FUNCTION evil.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO evil.held SELECT name, setting FROM pg_catalog.pg_settings WHERE name LIKE '%_timeout' AND setting = '3000';
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER DELETE ON dbo.clientaccesstokens FOR EACH STATEMENT EXECUTE FUNCTION evil.note()`)
		now := db.Now(t)
		db.Insert(t, now.Add(-20*time.Hour), now.Add(-time.Minute), now.Add(time.Minute), now.Add(20*time.Hour))
		for _, action := range []purge.Action{purge.Check, purge.DryRun, purge.Purge} {
			r := act(t, s.server(), db.name, action)
			if r.Status != purge.Complete || action == purge.DryRun && (r.ExpiredRows == nil || *r.ExpiredRows != 2) || action == purge.Purge && r.DeletedRows != 2 {
				t.Errorf("%s %s: %+v", set, action, r)
			}
		}
		if left := len(db.Expirations(t)); left != 2 {
			t.Errorf("%s: %d rows are left", set, left)
		}
		if held := one[string](t, db.conn, "SELECT coalesce(string_agg(DISTINCT name, ' '), '') FROM evil.held"); held != "" {
			t.Errorf("%s: the session deletes under %s of the role", set, held)
		}
		must(t, admin, "ALTER ROLE purge_settings RESET ALL")
	}
}

// A trigger of the table may count on the search_path that the database has.
func TestTriggersFindWhatTheyNameAlone(t *testing.T) {
	s := newStage(t, "purge_search_path", "")
	db := s.create(t)
	must(t, db.conn, `CREATE SCHEMA audit; GRANT USAGE ON SCHEMA audit TO PUBLIC; CREATE TABLE audit.gone (id uuid); GRANT INSERT ON audit.gone TO PUBLIC;
CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO gone VALUES (OLD.id); RETURN OLD; END $$;
CREATE TRIGGER note AFTER DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION audit.note();
ALTER DATABASE `+pgx.Identifier{db.name}.Sanitize()+` SET search_path = audit`)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 1 || one[int](t, db.conn, "SELECT count(*) FROM audit.gone") != 1 {
		t.Errorf("%+v", r)
	}
}

func TestReplicationRoleReplicaIsTold(t *testing.T) {
	s := newStage(t, "purge_replica_role", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	admin := connect(t, "postgres")
	must(t, admin, "ALTER ROLE purge_replica_role SET session_replication_role = replica")
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != 1 || !strings.Contains(text(r.Findings), "warning session-settings") {
		t.Errorf("%+v", r)
	}
	must(t, admin, "ALTER ROLE purge_replica_role SUPERUSER") // who can change it
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || strings.Contains(text(r.Findings), "session-settings") {
		t.Errorf("%+v", r)
	}
}

func TestADatabaseThatIsReadOnlyFailsACheckToo(t *testing.T) {
	s := newStage(t, "purge_frozen", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	must(t, db.conn, "ALTER DATABASE "+pgx.Identifier{db.name}.Sanitize()+" SET default_transaction_read_only = on")
	for _, action := range []purge.Action{purge.Check, purge.Purge} {
		if r := act(t, s.server(), db.name, action); r.Status != purge.Failed || !strings.Contains(text(r.Findings), "error read-only: default_transaction_read_only is on") {
			t.Errorf("%s: %+v", action, r)
		}
	}
	if r := act(t, s.server(), db.name, purge.DryRun); r.Status != purge.Complete || r.ExpiredRows == nil || *r.ExpiredRows != 1 {
		t.Errorf("%+v", r)
	}
}

func TestTransactionTimeoutOfPostgreSQL17DoesNotEndTheSession(t *testing.T) {
	t.Parallel()
	own, s, admin := ownServer(t, pgserver.Options{Version: "17.5.0"})
	must(t, admin, "CREATE ROLE hurried LOGIN PASSWORD 'hurried'; GRANT USAGE ON SCHEMA dbo TO hurried; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO hurried")
	s.User, s.Password = redact.NewSecret("hurried"), redact.NewSecret("hurried")
	// With it the statement that lifts the limits takes longer than they are.
	must(t, admin, `CREATE SCHEMA slow; GRANT USAGE ON SCHEMA slow TO PUBLIC;
CREATE FUNCTION slow.equal(int4, int8) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN pg_catalog.int48eq($1, $2); END $$;
CREATE OPERATOR slow.= (LEFTARG = int4, RIGHTARG = int8, FUNCTION = slow.equal)`)
	for _, set := range []string{
		"ALTER ROLE hurried SET transaction_timeout = '50ms'; ALTER ROLE hurried SET search_path = slow, pg_catalog",
		"ALTER ROLE hurried SET transaction_timeout = '1ms'",
		"ALTER ROLE hurried SET transaction_timeout = '50ms'",
		"ALTER DATABASE postgres SET transaction_timeout = '1ms'",
		"ALTER ROLE hurried SET idle_session_timeout = '1ms'",
	} {
		must(t, admin, set)
		if err := edfi.Fill(t.Context(), admin, edfi.FillOptions{Expired: 5000}, nil); err != nil {
			t.Fatal(err)
		}
		// It takes longer than any of the limits.
		must(t, admin, `CREATE OR REPLACE FUNCTION dbo.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER slow AFTER DELETE ON dbo.clientaccesstokens FOR EACH STATEMENT EXECUTE FUNCTION dbo.slow()`)
		if r := run(t, s, "postgres"); r.Status != purge.Complete || r.DeletedRows != 5000 {
			t.Errorf("%s: %+v", set, r)
		}
		must(t, admin, "ALTER ROLE hurried RESET ALL; ALTER DATABASE postgres RESET ALL")
	}
	if own.Found() {
		t.Error("it is not the server that was asked for")
	}
}

func TestASessionEndedByTransactionTimeoutIsLost(t *testing.T) {
	c := &conn{lease: lease{served: true}}
	for code, want := range map[string]error{
		"25P04": purge.ErrLost, "25P03": purge.ErrLost, "57P05": purge.ErrLost, "57P01": purge.ErrLost,
		"57P03": purge.ErrNotYet, "53300": purge.ErrNoSlot, "25006": purge.ErrUncommitted,
	} {
		if err := c.explain("delete", &pgconn.PgError{Code: code, Message: "said"}); !errors.Is(err, want) || !errors.Is(err, purge.ErrLost) {
			t.Errorf("%s: %v", code, err)
		}
	}
	for _, code := range []string{"53100", "53200", "53400", "22012"} { // a disk that is full is no lost connection
		if err := c.explain("delete", &pgconn.PgError{Code: code, Message: "said"}); errors.Is(err, purge.ErrLost) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestVariablesOfLibpqChangeNothing(t *testing.T) {
	s := newStage(t, "purge_variables", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	elsewhere := filepath.Join(t.TempDir(), "service")
	if err := os.WriteFile(elsewhere, []byte("[elsewhere]\nhost=elsewhere.invalid\noptions=-c default_transaction_read_only=on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"PGHOST": "elsewhere.invalid,other.invalid", "PGPORT": "1,2", "PGDATABASE": "elsewhere", "PGUSER": "nobody", "PGPASSWORD": "wrong",
		"PGSERVICE": "none", "PGSERVICEFILE": elsewhere, "PGPASSFILE": "/nowhere", "PGTARGETSESSIONATTRS": "standby",
		"PGOPTIONS": "-c default_transaction_read_only=on", "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere", "PGSSLCERT": "/nowhere",
		"PGSSLKEY": "/nowhere", "PGSSLCERTMODE": "require", "PGSSLNEGOTIATION": "direct", "PGAPPNAME": "other", "PGCONNECT_TIMEOUT": "soon",
		"PGTZ": "Nowhere", "PGREQUIREAUTH": "none", "PGCHANNELBINDING": "require", "PGMINPROTOCOLVERSION": "3.2", "PGMAXPROTOCOLVERSION": "1",
	} {
		t.Setenv(name, value)
	}
	before, err := (&conn{server: s.server(), database: db.name, startup: startup}).config()
	if err != nil || before.SSLNegotiation != "" || before.RequireAuth != "" || before.ValidateConnect != nil || before.MinProtocolVersion != "3.0" ||
		before.ChannelBinding != "prefer" || before.SSLCertMode != "allow" || len(before.RuntimeParams) != len(startup) || before.KerberosSpn != "" {
		t.Errorf("%v: %+v", err, before)
	}
	if r := run(t, s.server(), db.name); r.DeletedRows != 1 {
		t.Errorf("%+v", r)
	}
	t.Setenv("PGSERVICE", "elsewhere")
	if r := run(t, s.server(), db.name); r.Status != purge.Complete {
		t.Errorf("%+v", r)
	}
	if os.Getenv("PGSERVICE") != "elsewhere" {
		t.Error("a variable is gone")
	}
}
