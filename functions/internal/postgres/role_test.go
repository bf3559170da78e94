package postgres

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// granted returns on which tables, and on which schemas, the login has the rights of a
// purge, and fails where it has a part of them or more.
func granted(t *testing.T, db database) (tables, schemas []string) {
	t.Helper()
	for _, table := range purge.Tables() {
		its := relations[table.Name]
		rights := one[[]bool](t, db.conn, fmt.Sprintf(`
SELECT ARRAY[has_table_privilege(role, relation, 'DELETE'),
             has_column_privilege(role, relation, %s, 'SELECT'),
             has_column_privilege(role, relation, (-1)::int2, 'SELECT'),
             has_column_privilege(role, relation, %s, 'SELECT') OR has_table_privilege(role, relation, 'SELECT, INSERT, UPDATE, TRUNCATE')]
FROM (VALUES (%s::regrole::oid, %s::regclass::oid)) AS its (role, relation)`,
			quote(strings.Trim(its.column, `"`)), quote(strings.Trim(its.key, `"`)), quote(db.role), quote(its.table)))
		switch {
		case slices.Equal(rights, []bool{true, true, true, false}):
			tables = append(tables, table.Name)
		case slices.Contains(rights, true):
			t.Errorf("%s: %t", table, rights)
		}
	}
	for _, schema := range []string{"dbo", "adminapi", "dmscs"} {
		if one[bool](t, db.conn, fmt.Sprintf("SELECT has_schema_privilege(%s, %s, 'USAGE')", quote(db.role), quote(schema))) {
			schemas = append(schemas, schema)
		}
	}
	return tables, schemas
}

// ask sets what the script is asked for.
func ask(t *testing.T, db database, tables ...string) {
	t.Helper()
	must(t, db.conn, "SET "+db.role+".tables = "+quote(strings.Join(tables, ", ")))
}

func expectRights(t *testing.T, db database, tables, schemas []string) {
	t.Helper()
	if has, uses := granted(t, db); !slices.Equal(has, tables) || !slices.Equal(uses, schemas) {
		t.Errorf("rights on %q, schemas %q; want %q and %q", has, uses, tables, schemas)
	}
}

func TestTheRoleHasRightsOnTheTablesAskedForAndNoOthers(t *testing.T) {
	t.Parallel()
	tokens, admin, configuration, logs := purge.ClientAccessTokens.Name, purge.AdminTokens.Name, purge.ConfigurationTokens.Name, purge.ClientAccessTokenLogs.Name
	all, everywhere := purge.TableNames(), []string{"dbo", "adminapi", "dmscs"}
	s := newStage(t, "purge_asked", "")
	db := s.createEmpty(t)
	if err := edfi.CreateOtherTables(t.Context(), db.conn); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ tables, schemas []string }{
		{all, everywhere},
		{[]string{tokens, admin}, everywhere[:2]},
		{[]string{logs}, everywhere[:1]},
		{[]string{admin, configuration}, everywhere[1:]},
		{[]string{tokens}, everywhere[:1]},
	} {
		ask(t, db, step.tables...)
		grant(t, db)
		expectRights(t, db, step.tables, step.schemas)
	}

	// Not asked at all is ClientAccessTokens alone, in a template too.
	ask(t, db, all...)
	grant(t, db)
	must(t, db.conn, "RESET "+db.role+".tables; ALTER DATABASE "+quoted(db.name)+" IS_TEMPLATE true")
	grant(t, db)
	must(t, db.conn, "ALTER DATABASE "+quoted(db.name)+" IS_TEMPLATE false")
	expectRights(t, db, []string{tokens}, everywhere[:1])

	// Rights that others granted stay theirs.
	must(t, db.conn, "GRANT SELECT ON dbo.apiclients, adminapi.tokens TO "+db.role+"_rights; GRANT USAGE ON SCHEMA adminapi TO "+db.role)
	grant(t, db)
	if !one[bool](t, db.conn, fmt.Sprintf("SELECT has_table_privilege(%[1]s, 'dbo.apiclients', 'SELECT') AND has_table_privilege(%[1]s, 'adminapi.tokens', 'SELECT') AND has_schema_privilege(%[1]s, 'adminapi', 'USAGE')", quote(db.role))) {
		t.Error("rights that the script did not grant are gone")
	}
}

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// An owner is no superuser, and may change the rights on what is his alone.
func TestTheRoleIsMadeByTheOwnerOfTheTablesAllOrNothing(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_owned", "")
	db := s.createEmpty(t)
	if err := edfi.CreateOtherTables(t.Context(), db.conn); err != nil {
		t.Fatal(err)
	}
	both := []string{purge.ClientAccessTokens.Name, purge.AdminTokens.Name}
	ask(t, db, both...)
	grant(t, db) // the roles are an administrator's to create
	owner := db.role + "_owner"
	must(t, db.conn, "DROP ROLE IF EXISTS "+owner+"; CREATE ROLE "+owner)
	t.Cleanup(func() { must(t, db.conn, "RESET ROLE; DROP OWNED BY "+owner+" CASCADE; DROP ROLE "+owner) })
	for _, relation := range []string{"SCHEMA dbo", "SCHEMA adminapi", "TABLE dbo.clientaccesstokens"} {
		must(t, db.conn, "ALTER "+relation+" OWNER TO "+owner)
	}
	script, err := os.ReadFile("../../../infra/postgres/role.sql")
	if err != nil {
		t.Fatal(err)
	}
	seen := db
	seen.conn = connect(t, db.name) // by a superuser
	refused := func(want string) {
		t.Helper()
		_, err := db.conn.Exec(t.Context(), strings.ReplaceAll(string(script), "edfi_token_purge", db.role))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
		expectRights(t, seen, both, []string{"dbo", "adminapi"})
	}
	ask(t, db, "ClientAccessTokens", "adminapi.tokens")
	refused("is none of ClientAccessTokens")
	ask(t, db, "dmscs.OpenIddictToken", "ClientAccessTokens")
	must(t, db.conn, "SET ROLE "+owner)
	refused("permission denied for schema dmscs")
	ask(t, db, purge.ClientAccessTokens.Name)
	refused("permission denied for table tokens")
	must(t, seen.conn, "GRANT SELECT ON adminapi.tokens TO "+owner) // now the server no more than warns
	refused("the rights on adminapi.tokens could not be changed")
	must(t, db.conn, "RESET ROLE; ALTER TABLE adminapi.tokens OWNER TO "+owner+"; SET ROLE "+owner)
	grant(t, db)
	expectRights(t, seen, []string{purge.ClientAccessTokens.Name}, []string{"dbo"})
	ask(t, db, both...)
	grant(t, db)
	expectRights(t, seen, both, []string{"dbo", "adminapi"})
}

// A login may have been made that does not use the rights of the roles it is a member of.
func TestTheRoleGivesItsRightsToALoginThatInheritsNone(t *testing.T) {
	s := newStage(t, "loner", "")
	must(t, connect(t, "postgres"), "ALTER ROLE loner NOINHERIT")
	db := filled(t, s)
	if r := run(t, s.server(), db.name); r.Status != purge.Complete || r.DeletedRows != rows {
		t.Errorf("%s, %d rows: %s", r.Status, r.DeletedRows, r.Error)
	}
}
