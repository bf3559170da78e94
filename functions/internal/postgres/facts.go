package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"edfi-token-purge/functions/internal/purge"
)

// The types that a column of expirations may have. Another type has another notion of
// expired.
const (
	withoutZone = "timestamp without time zone"
	withZone    = "timestamp with time zone"
)

// facts is what sqlFacts returns, and sqlObstacles.
type facts struct {
	table     purge.Table      // with its names as SQL writes them
	column    string           // of expirations, as the catalogue has it
	now       pgtype.Timestamp // in UTC
	clock     pgtype.Timestamp // that expirations are compared with
	database  string           // that the connection opened
	version   int              // 150004 is 15.4
	standby   bool
	oid       uint32 // 0 is no table
	kind      rune   // as pg_class has it
	plain     bool   // an ordinary table, of which no other inherits
	typeName  string // of the column expiration; "" is no such column
	usage     bool
	selectExp bool
	places    bool // the login may tell rows apart by their place
	selectAll bool
	deletable bool
	secured   bool     // row-level security holds for the login
	hidden    bool     // it hides rows, or may
	taken     bool     // a policy takes rows away, which no other one gives back
	indexed   bool     // an index finds rows by their expiration
	unindexed []string // the tables that have no such index, not all of many
	signature string   // of all that is relied on later
	leaves    []uint32 // the table and all that inherit from it
	counted   bool     // the server counts the rows that it deletes
	dead      int64    // deleted rows that were not cleared away yet, about
	perPage   int      // rows that a page of the table can have at most
	published bool     // deletes of some table are
	nameless  string   // the statements for what publishes deletes without a replica identity
	misnamed  string   // and for what publishes them with one that does not fit
	acts      bool     // a trigger, a foreign key or a rule does more at a delete
	local     bool     // expirations are local time, as Ed-Fi had them in its versions 2
	backend   uint32   // the server's process that ran the statement
	readOnly  bool     // default_transaction_read_only is on, or the server is a standby
	unlinked  bool     // neither triggers nor foreign keys act for this login
	another   bool     // the login acts as another role, by a setting
	beside    string   // the table of the same name in other letters; "" is none
	resets    []string // statements that change settings
	writes    int64    // transactions that had written to the server when it was asked
	asked     time.Time
}

// canUseCTID tells whether the role may tell rows apart by their place.
func (f facts) canUseCTID() bool { return f.places && f.plain }

// fits tells whether expirations of the table may be of the column's type.
func (f facts) fits() bool {
	return f.typeName == withoutZone || f.table.Local && f.typeName == withZone
}

// on returns sql for the table that was found.
func (f facts) on(sql string) string {
	return strings.NewReplacer("{table}", f.table.String(), "{expiration}", f.table.Expiration, "{column}", f.column).Replace(sql)
}

// readsRanges tells whether the server has a plan for a range of places.
func (f facts) readsRanges() bool { return f.version >= 14_00_00 }

// session is one of the server's.
type session struct {
	backend uint32
	age     any // in milliseconds, at most; nil is any age
}

// examine prepares the session, reads the facts and takes the lock, as a rule in
// one round trip. It sets nothing and takes no lock in any other session than this one;
// what it has set is in c.set.
func (c *conn) examine(ctx context.Context, own session, lock bool) error {
	f := facts{table: c.table.Lower(), asked: time.Now()}
	names := func(exactly, folded string) []string { return []string{exactly, folded} }
	var batch pgx.Batch
	batch.Queue(sqlReadable)
	batch.Queue(sqlSettings, int64(own.backend), own.age)
	batch.Queue(sqlWrites)
	batch.Queue(sqlFacts, f.table.Schema, names(c.table.Relation, f.table.Relation), names(c.table.Expiration, f.table.Expiration))
	if c.table.Local {
		batch.Queue(sqlLocalClock, c.table.Grace.Seconds())
	}
	if lock {
		batch.Queue(sqlLock, int64(own.backend), own.age)
	}
	results := c.pg.SendBatch(ctx, &batch)
	_, err := results.Exec()
	var set []string
	if err == nil {
		read, _ := results.Query() // the error comes below
		set, err = pgx.CollectRows(read, func(row pgx.CollectableRow) (name string, err error) { return name, row.Scan(&name, nil) })
	}
	if err == nil {
		err = results.QueryRow().Scan(&f.writes)
	}
	if err == nil {
		err = f.read(results.QueryRow())
	}
	if err == nil && c.table.Local {
		err = f.readClock(results.QueryRow())
	}
	if err == nil && lock {
		err = results.QueryRow().Scan(&c.locked)
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	if err == nil && f.unusual() {
		err = c.pg.QueryRow(ctx, sqlObstacles, f.oid).Scan(&f.hidden, &f.taken, &f.nameless, &f.misnamed, &f.resets)
	}
	c.facts, c.served, c.set = f, err == nil, set
	if sqlState(err) == pgerrcode.QueryCanceled && ctx.Err() != nil { // by ourselves, as the time was over
		err = ctx.Err()
	}
	return c.explain("examine the database", err)
}

// read reads what sqlFacts returns.
func (f *facts) read(row pgx.Row) error {
	err := row.Scan(&f.now, &f.database, &f.version, &f.standby, &f.oid, &f.kind, &f.plain, &f.typeName,
		&f.usage, &f.selectExp, &f.places, &f.selectAll, &f.deletable, &f.secured, &f.unindexed,
		&f.signature, &f.leaves, &f.counted, &f.dead, &f.perPage, &f.published, &f.acts, &f.local,
		&f.table.Relation, &f.table.Expiration, &f.column, &f.backend, &f.readOnly, &f.unlinked, &f.another, &f.beside)
	f.clock, f.indexed = f.now, f.oid != 0 && len(f.unindexed) == 0
	return err
}

// unusual tells whether sqlObstacles has anything to say.
func (f *facts) unusual() bool {
	return f.secured || f.published || f.readOnly || f.unlinked || f.another || !f.counted
}

// readClock reads what sqlLocalClock returns. A column with a zone has instants.
func (f *facts) readClock(row pgx.Row) error {
	var local pgtype.Timestamp
	err := row.Scan(&local)
	if f.typeName != withZone {
		f.clock = local
	}
	return err
}

// fault returns why the table can't be purged, or nil.
func (f facts) fault(database string, writes bool) error {
	if err := f.strange(database); err != nil {
		return err
	}
	switch {
	case writes && f.standby:
		return purge.NotPurgeable{Kind: purge.ReaderEndpoint, Message: "the server is a read-only standby: use the writer's endpoint, not a reader's", Server: true}
	case writes && f.readOnly:
		return purge.NotPurgeable{Kind: purge.ReadOnly, Message: f.writesOff()}
	case !f.usage || !f.selectExp:
		return purge.NotPurgeable{Kind: purge.NoSelectRight, Message: "the login may not read when tokens expire: " + f.grant()}
	case f.hidden:
		return purge.NotPurgeable{Kind: purge.RowSecurity, Message: "row-level security hides rows from the login, or may, so that expired ones would stay: for the role of the login " + f.bypass()}
	case writes:
		return f.mayDelete()
	}
	return nil
}

// bypass returns what lets the login see all rows.
func (f facts) bypass() string {
	if f.taken {
		return "ALTER ROLE edfi_token_purge BYPASSRLS; (a restrictive policy takes rows away, which no policy gives back)"
	}
	return fmt.Sprintf("ALTER ROLE edfi_token_purge BYPASSRLS; or CREATE POLICY token_purge ON %s TO edfi_token_purge USING (true);", f.table)
}

// strange returns why what was found is not Ed-Fi's table, or nil.
func (f facts) strange(database string) error {
	wrong := func(format string, args ...any) error {
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case f.database != database: // the server cuts a name to 63 bytes, and a pooler may lead anywhere
		return purge.NotPurgeable{Kind: purge.OtherDatabase, Message: fmt.Sprintf("the connection opened database %q instead of %q", f.database, database), Server: true}
	case f.oid == 0:
		return purge.NotPurgeable{Kind: purge.NoTable, Message: fmt.Sprintf("table %s does not exist in database %s: is it an Ed-Fi admin database?", f.table, database)}
	case f.kind == 'F': // its rows are neither counted nor indexed here
		return wrong("%s in database %s has a part that is a foreign table; detach that, and have the database purged that has its rows", f.table, database)
	case f.kind != 'r' && f.kind != 'p':
		return wrong("%s in database %s is %s and no table; have the database purged that has the table itself", f.table, database, kinds[f.kind])
	case f.local && f.table.Schema == purge.ClientAccessTokens.Schema:
		return wrong("%s", purge.LocalTime(f.table))
	case f.typeName == "":
		return wrong("%s has no column %s: is it Ed-Fi's table?", f.table, f.table.Expiration)
	case !f.fits():
		return wrong("%s.%s is of type %s; Ed-Fi's is %s, and another type has another notion of expired", f.table, f.table.Expiration, f.typeName, withoutZone)
	}
	return nil
}

// kinds are what may stand in the table's place, as pg_class.relkind has it.
var kinds = map[rune]string{'v': "a view", 'm': "a materialized view", 'f': "a foreign table", 'S': "a sequence", 'c': "a type", 'i': "an index", 'I': "an index", 't': "a TOAST table"}

// The places of the settings in facts.resets.
const (
	readOnly = iota
	role
	replicationRole
	counts
)

// reset returns how to change a setting, as an administrator.
func (f facts) reset(setting int) string {
	return f.resets[setting] + " (on RDS the server's own are in the parameter group)"
}

// writesOff says why nothing can be deleted.
func (f facts) writesOff() string {
	return "default_transaction_read_only is on: where that is meant, exclude the database or use another server; else " + f.reset(readOnly)
}

// countsOff says why rows are not counted.
func (f facts) countsOff() string {
	return "track_counts is off, for the login, for the database, or for the server, which stops autovacuum too: " + f.reset(counts)
}

// mayDelete returns nil, or the error for a login that may only read.
func (f facts) mayDelete() error {
	switch {
	case f.deletable && f.nameless != "":
		return purge.NotPurgeable{Kind: purge.NoReplicaIdentity, Message: "a publication has the table's deletes, and the table, or one that inherits from it, has no replica identity, so that the server refuses them: " + f.nameless}
	case f.deletable && f.acts && !f.counted:
		return purge.NotPurgeable{Kind: purge.CountsUnproved, Message: "a trigger, a foreign key or a rule acts on deletes, and without the server's count nobody can tell what it makes of them. " + f.countsOff()}
	case f.deletable:
		return nil
	}
	return purge.NotPurgeable{Kind: purge.NoDeleteRight, Message: "the login may not delete tokens: " + f.grant()}
}

// grant gives all that a purge needs. No message names the login that is used.
func (f facts) grant() string {
	script := "infra/postgres/role.sql"
	if f.table.Name != purge.ClientAccessTokens.Name {
		script += " with all names of TABLES, as docs/tables.md says"
	}
	acting := ""
	if f.another {
		acting = "a setting has the login act as another role, so that its own rights don't count: " + f.resets[role] + " Then, where it has none, "
	}
	return acting + fmt.Sprintf("run %s, or for the role of the login GRANT USAGE ON SCHEMA %s TO edfi_token_purge; GRANT SELECT (ctid, %s), DELETE ON %s TO edfi_token_purge;",
		script, f.table.Schema, f.table.Expiration, f.table)
}

// findings are what costs time, or leaves rows behind, in each run.
func (f facts) findings() (found []purge.Finding) {
	if f.unlinked {
		found = append(found, purge.SessionSettings.Found("session_replication_role is replica for the login, so neither triggers nor foreign keys act on its deletes, and only a superuser can change that: "+f.reset(replicationRole)))
	}
	if !f.counted && !f.acts { // else it fails
		found = append(found, purge.CountsUnproved.Found("rows are counted as the DELETE returned them, and not as the server counts what has left. "+f.countsOff()))
	}
	if !f.indexed {
		found = append(found, f.missingIndex())
	}
	if f.beside != "" {
		found = append(found, purge.TwoTables.Found(fmt.Sprintf("%[1]s is purged, and %[2]s, which is there too, is not: rename the one that is not in use, such as ALTER TABLE %[2]s RENAME TO not_in_use;", f.table, f.beside)))
	}
	return found
}

// mostIndexes is how many statements a finding has.
const mostIndexes = 20

// missingIndex is the finding for a table without the index on expiration.
func (f facts) missingIndex() purge.Finding {
	how := "each run reads the whole table once"
	if !f.canUseCTID() {
		how = fmt.Sprintf("each batch reads the whole table; with GRANT SELECT (ctid) ON %s it would be one reading a run", f.table)
	}
	them, create := "it", []string{}
	for _, table := range f.unindexed[:min(len(f.unindexed), mostIndexes)] {
		create = append(create, fmt.Sprintf("CREATE INDEX CONCURRENTLY ON %s (%s DESC);", table, f.table.Expiration))
	}
	if len(create) > 1 {
		them = "them, one statement at a time"
	}
	if len(create) < len(f.unindexed) {
		create = append(create, "and so on for the other parts of the table; a check names those that are left")
	}
	return purge.MissingExpirationIndex.Found(fmt.Sprintf("no index finds rows by their expiration, so %s. Create %s: %s", how, them, strings.Join(create, " ")))
}
