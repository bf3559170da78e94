package sqlserver

import (
	"database/sql"
	"errors"
	"os"
	"strings"
	"testing"

	mssql "github.com/microsoft/go-mssqldb"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// runAll runs the batches of a script one after the other, as Management Studio does,
// which goes on after an error, and returns what they said.
func runAll(t *testing.T, db *sql.DB, script string) (said []string) {
	t.Helper()
	for batch := range strings.SplitSeq(script, "\nGO\n") {
		if err := edfi.ExecBatches(t.Context(), db, batch); err != nil {
			var refused mssql.Error
			if !errors.As(err, &refused) {
				t.Fatal(err)
			}
			said = append(said, refused.Message)
		}
	}
	return said
}

func TestTheRoleWithoutAPasswordCreatesNothing(t *testing.T) {
	s := newStage(t, "purge_literal")
	db := s.create(t)
	role, err := os.ReadFile("../../../infra/sqlserver/role.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"$(PURGE_PASSWORD)", ""} { // as without SQLCMD mode
		login := s.login + "_none"
		clone := login + "_clone" // of a secret that rotates between two users
		must(t, db.conn, "CREATE LOGIN "+clone+" WITH PASSWORD = "+quote("Aa1-"+login))
		said := runAll(t, db.conn, strings.NewReplacer("edfi_token_purge", login, "$(PURGE_PASSWORD)", password).Replace(string(role)))
		if len(said) == 0 || !strings.Contains(said[0], "SQLCMD mode") || !strings.Contains(said[0], "Nothing was created") {
			t.Errorf("%q: %q", password, said)
		}
		if n := one[int](t, db.conn, "SELECT COUNT(*) FROM sys.server_principals WHERE name LIKE "+quote(login+"%")); n != 1 {
			t.Errorf("%q: %d logins were created", password, n-1)
		}
		if n := one[int](t, db.conn, "SELECT COUNT(*) FROM sys.database_principals WHERE name LIKE "+quote(login+"%")); n != 0 {
			t.Errorf("%q: %d users or roles were created", password, n)
		}
		must(t, connect(t, "master"), "DROP LOGIN "+clone)
	}
}

// A secret that rotates between two users has a second one by the time that it is run
// again.
func TestTheRoleLetsTheSecondUserOfARotationIn(t *testing.T) {
	s := newStage(t, "purge_rotated")
	clone := stage{s.login + "_clone"}
	master := connect(t, "master")
	must(t, master, "CREATE LOGIN "+clone.login+" WITH PASSWORD = "+quote(password))
	t.Cleanup(func() { must(t, connect(t, "master"), "DROP LOGIN "+clone.login) })
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-1))
	db.grant(t)
	second := s.server()
	second.User = redact.NewSecret(clone.login)
	if r := run(t, second, db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
		t.Errorf("%+v", r)
	}
}

// As without SQLCMD mode, too.
func TestAListWithAnotherNameChangesNoRight(t *testing.T) {
	s := newStage(t, "purge_listed")
	db := estate(t, s, purge.Tables()...)
	script, err := os.ReadFile("../../../infra/sqlserver/tables.sql")
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]purge.Status{
		"$(TABLES)": purge.Complete, "": purge.Complete, "ClientAccessTokens,adminapi.Token": purge.Complete, "ClientAccessTokens,": purge.Complete,
		"ClientAccessTokens, adminapi.Tokens": purge.Failed, // which it takes
	} {
		said := runAll(t, db.conn, strings.NewReplacer("edfi_token_purge", s.login, "$(TABLES)", strings.Join(purge.TableNames(), ",")).Replace(string(script)))
		if said != nil {
			t.Fatal(said)
		}
		said = runAll(t, db.conn, strings.NewReplacer("edfi_token_purge", s.login, "$(TABLES)", list).Replace(string(script)))
		if refused := len(said) == 1 && strings.Contains(said[0], "No right was changed"); refused != (want == purge.Complete) {
			t.Errorf("%q: %q", list, said)
		}
		if r := runTables(t, s.server(), db, purge.ConfigurationTokens); r.Status != want {
			t.Errorf("%q: %+v", list, r)
		}
	}
}
