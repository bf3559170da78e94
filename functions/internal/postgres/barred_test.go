package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// encoded returns a database with rows whose texts are of another encoding than UTF-8.
func encoded(t *testing.T, s stage, encoding string) database {
	t.Helper()
	admin, name := connect(t, "postgres"), s.role+"_"+encoding
	must(t, admin, fmt.Sprintf("CREATE DATABASE %s TEMPLATE template0 ENCODING %s LC_COLLATE 'C' LC_CTYPE 'C'", pgx.Identifier{name}.Sanitize(), quote(encoding)))
	t.Cleanup(func() {
		must(t, connect(t, "postgres"), "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
	})
	db := database{name: name, role: s.role, conn: connect(t, name), its: relations[purge.ClientAccessTokens.Name]}
	if err := edfi.CreateSchema(t.Context(), db.conn); err != nil {
		t.Fatal(err)
	}
	grant(t, db)
	if err := edfi.Fill(t.Context(), db.conn, edfi.FillOptions{Expired: rows, Live: 10}, nil); err != nil {
		t.Fatal(err)
	}
	return db
}

// What a trigger says may be in letters that UTF-8 doesn't have. A notice of that kind
// stops no delete, and a refusal is that row's alone.
func TestWhatATriggerSaysInLettersThatCannotBeReadStopsNoOtherRow(t *testing.T) {
	s := newStage(t, "letters", "")
	for _, encoding := range []string{"SQL_ASCII", "WIN1252"} {
		db := encoded(t, s, encoding)
		must(t, db.conn, `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE unreadable text := CASE WHEN getdatabaseencoding() = 'SQL_ASCII' THEN E'\xf6' ELSE chr(129) END;
BEGIN
    IF OLD.id::text < '01' THEN RAISE 'no%', unreadable; END IF;
    RAISE NOTICE 'gel%scht', unreadable;
    RETURN OLD;
END$$;
CREATE TRIGGER says BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION f()`)
		resist := one[int64](t, db.conn, "SELECT count(*) FROM dbo.clientaccesstokens WHERE expiration <= now() AT TIME ZONE 'UTC' AND id::text < '01'")
		checked, purged := act(t, s.server(), db.name, purge.Check), run(t, s.server(), db.name)
		expired, live := db.counts(t)
		if purged.Status != purge.Failed || purged.DeletedRows != rows-resist || expired != resist || live != 10 || checked.Status != purge.Failed {
			t.Errorf("%s: %s, %d rows went and %d of %d that resist are left, %d live: %s\na check is %s", encoding, purged.Status, purged.DeletedRows, expired, resist, live, purged.Error, checked.Status)
		}
		if !strings.Contains(purged.Error, "DISABLE TRIGGER says;") || !strings.Contains(purged.Error, "letters that can't be shown") {
			t.Errorf("%s: %s", encoding, purged.Error)
		}
	}
}

// A role that may no longer log in is refused like one with another password: the message
// has what lets it in again.
func TestARoleThatMayNotLogInIsToldWithItsMend(t *testing.T) {
	s := newStage(t, "barred", "")
	db, admin := filled(t, s), connect(t, "postgres")
	for _, bar := range []string{"NOLOGIN", "VALID UNTIL '2020-01-01'", "CONNECTION LIMIT 0"} {
		must(t, db.conn, "ALTER ROLE barred "+bar)
		_, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, false)
		if err == nil {
			t.Fatalf("%s: opened", bar)
		}
		must(t, db.conn, strings.ReplaceAll(statement.FindString(err.Error()), "edfi_token_purge", "barred"))
		if r := act(t, s.server(), db.name, purge.Check); r.Status != purge.Complete {
			t.Errorf("%s: %s mends nothing: %s", bar, err, r.Error)
		}
	}
	for _, bar := range []string{"CONNECTION LIMIT 0", "ALLOW_CONNECTIONS false"} {
		must(t, admin, fmt.Sprintf("ALTER DATABASE %s %s", pgx.Identifier{db.name}.Sanitize(), bar))
		_, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, false)
		if err == nil {
			t.Fatalf("%s: opened", bar)
		}
		must(t, admin, statement.FindString(err.Error()))
		if r := act(t, s.server(), db.name, purge.Check); r.Status != purge.Complete {
			t.Errorf("%s: %s mends nothing: %s", bar, err, r.Error)
		}
	}
	wrong := s.server()
	wrong.Password = redact.NewSecret("another")
	if _, err := wrong.Open(t.Context(), db.name, purge.ClientAccessTokens, false); err == nil || !strings.Contains(err.Error(), "check user name and password") {
		t.Errorf("another password: %v", err)
	}
}

// What a check tries and undoes holds its locks meanwhile: where rows take long it tries a
// few at a time, and ends by itself.
func TestACheckTriesAFewRowsWhereTheyTakeLong(t *testing.T) {
	s := newStage(t, "tries", "")
	db := filled(t, s)
	db.Delay(t, 30*time.Millisecond) // two minutes in all
	r := act(t, s.server(), db.name, purge.Check)
	if found := text(r.Findings); r.Status != purge.Complete || !strings.Contains(found, "warning slow-rows") || !strings.Contains(found, "DISABLE TRIGGER before_delete;") {
		t.Errorf("%s: %s\n%s", r.Status, r.Error, found)
	}
}

// A setting may have the login act as another role, whose rights count then: more of its
// own mend nothing.
func TestALoginThatActsAsAnotherRoleIsTold(t *testing.T) {
	s := newStage(t, "acting", "")
	db := filled(t, s)
	must(t, db.conn, "DROP ROLE IF EXISTS acted; CREATE ROLE acted; GRANT acted TO acting")
	t.Cleanup(func() { must(t, connect(t, "postgres"), "DROP ROLE acted") })
	for _, set := range []string{"ALTER ROLE acting", "ALTER ROLE acting IN DATABASE " + pgx.Identifier{db.name}.Sanitize()} {
		must(t, db.conn, set+" SET role = acted")
		checked, purged := act(t, s.server(), db.name, purge.Check), run(t, s.server(), db.name)
		if checked.Status != purge.Failed || purged.Status != purge.Failed || purged.DeletedRows != 0 {
			t.Errorf("%s: a check is %s, a purge %s with %d rows", set, checked.Status, purged.Status, purged.DeletedRows)
		}
		must(t, db.conn, strings.ReplaceAll(statement.FindString(purged.Error), "edfi_token_purge", "acting"))
		if r := act(t, s.server(), db.name, purge.Check); r.Status != purge.Complete {
			t.Errorf("%s: %s mends nothing: %s", set, purged.Error, r.Error)
		}
	}
	must(t, db.conn, "GRANT USAGE ON SCHEMA dbo TO acted; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO acted; ALTER ROLE acting SET role = acted")
	t.Cleanup(func() { db.conn.Exec(context.Background(), "DROP OWNED BY acted") }) //nolint:errcheck // the database goes anyway
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != rows {
		t.Errorf("as a role that has the rights: %s, %d rows: %s", r.Status, r.DeletedRows, r.Error)
	}
}
