package sqlserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	mssql "github.com/microsoft/go-mssqldb"

	"edfi-token-purge/functions/internal/purge"
)

const (
	// readOnly is what a database says of itself that takes no deletes here, and
	// setReadOnly one that takes none anywhere.
	readOnly    = "READ_ONLY"
	setReadOnly = "SET READ_ONLY"
)

// localTime is what a table says of itself whose expirations are in local time.
const localTime = "local"

// facts is what sqlFacts returns. sqlGuard says which of them are looked at again with
// each batch.
type facts struct {
	table      purge.Table
	now        time.Time // in UTC
	clock      time.Time // that expirations are compared with
	database   string    // that is open
	exact      bool      // an expiration comes to the client as it is
	updates    string    // READ_WRITE, readOnly or setReadOnly
	oid        int       // 0 is no table, or none that the login may know of
	typeName   string    // of the column of expirations; "" is no such column
	keyType    string    // of the key; the same
	selectable bool
	deletable  bool
	indexed    bool // an index finds rows by their expiration
	triggered  bool // a trigger may run on DELETE
	filtered   bool // a policy hides rows
	policed    bool // there seems to be a policy, which the login may not see
	rows       int64
	kind       string // of a table that can't be purged; "" is any other
}

// on returns sql for the table.
func (f facts) on(sql string) string {
	keyType := f.keyType
	if !f.keyed() {
		keyType = "sql_variant"
	}
	return strings.NewReplacer(
		"{table}", f.table.String(), "{schema}", f.table.Schema, "{relation}", f.table.Relation,
		"{expiration}", f.table.Expiration, "{key}", f.table.Key,
		"{type}", f.typeName, "{typenumber}", typeNumbers[f.typeName], "{keytype}", keyType,
	).Replace(sql)
}

// examine prepares the session and reads the facts, in one round trip.
func (c *conn) examine(ctx context.Context) error {
	f := facts{table: c.table}
	l := limits{lock: c.mostWait(ctx)}
	err := c.session.QueryRowContext(ctx, fmt.Sprintf(sqlSettings, milliseconds(l.lock))+f.on(sqlFacts)).Scan(&f.now, &f.database, &f.exact, &f.updates, &f.oid, &f.typeName, &f.keyType,
		&f.selectable, &f.deletable, &f.indexed, &f.triggered, &f.filtered, &f.rows, &f.kind)
	if err != nil {
		return c.explainExamining(ctx, err)
	}
	if f.clock = f.now; f.table.Local && f.exact { // Babelfish's local clock shows UTC in any zone
		if err := c.session.QueryRowContext(ctx, sqlLocalClock, sql.Named("accepted", int(f.table.Grace.Seconds()))).Scan(&f.clock); err != nil {
			return c.explain("read the clock", err)
		}
	}
	c.facts, c.limits = f, &l
	if f.oid == 0 {
		return c.examineMissing(ctx)
	}
	if f.selectable && f.rows > 0 && f.exact && !f.filtered { // who may not see a policy may see what it does
		var any int
		if err := c.session.QueryRowContext(ctx, f.on(sqlAnyRow)).Scan(&any); err != nil {
			return c.explain("examine the database", err)
		}
		c.facts.filtered = any == 0
		_, err := c.session.ExecContext(ctx, f.on(sqlStatistics))
		c.facts.policed = isNumber(err, noStatistics) // any other error is none of the table's
	}
	return nil
}

// explainExamining explains why the facts can't be read. The catalogue of a server older
// than 2016 lacks columns that they are read from.
func (c *conn) explainExamining(ctx context.Context, err error) error {
	var version string
	if isNumber(err, invalidColumn) && c.session.QueryRowContext(ctx, sqlVersion).Scan(&version) == nil {
		return fmt.Errorf("examine the database: the server's version, %s, is too old: this purge is for SQL Server 2017 (14) and later", version)
	}
	return c.explain("examine the database", err)
}

// examineMissing finds out why there seems to be no table.
func (c *conn) examineMissing(ctx context.Context) error {
	_, err := c.session.ExecContext(ctx, c.facts.on(sqlExists))
	var refused mssql.Error
	switch {
	case err == nil && !c.facts.exact && !c.facts.selectable: // Babelfish hides a table of which only some columns may be read
		return purge.NotPurgeable{Kind: purge.NoSelectRight, Message: c.facts.mayNotRead()}
	case err == nil: // it can be read, and is no table
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf("%s is a view or a synonym in database %s, and not a table", c.table, c.database)}
	case errors.As(err, &refused) && number(refused) == permissionDenied:
		return purge.NotPurgeable{Kind: purge.NoSelectRight, Message: c.facts.mayNotRead()}
	case errors.As(err, &refused) && number(refused) == invalidObject:
		return purge.NotPurgeable{Kind: purge.NoTable, Message: fmt.Sprintf("table %s does not exist in database %s: is it an Ed-Fi admin database? Or the login may not see it; then %s", c.table, c.database, c.facts.grant())}
	default:
		return c.explain("examine the database", err)
	}
}

// fault returns why the table can't be purged, or nil.
func (f facts) fault(database string, writes bool) error {
	switch {
	case !f.opens(database): // a trailing blank, another width
		return purge.NotPurgeable{Kind: purge.OtherDatabase, Message: fmt.Sprintf("the server opened database %q for the name %q: give its name as the server has it", f.database, database)}
	case f.typeName == "":
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf("%s has no column %s: is it Ed-Fi's table?", f.table, f.table.Expiration)}
	case !f.fits():
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf("%s.%s is of type %s; Ed-Fi's is %s, and another type has another notion of expired", f.table, f.table.Expiration, f.typeName, typeDatetime)}
	case f.keyType == "":
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf("%s has no column %s: is it Ed-Fi's table?", f.table, f.table.Key)}
	case f.kind == localTime:
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: purge.LocalTime(f.table)}
	case f.kind != "":
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf("%s is %s, which Ed-Fi's is not, and rows of such a table can't be purged", f.table, f.kind)}
	case writes && f.updates == readOnly:
		return purge.NotPurgeable{Kind: purge.ReaderEndpoint, Message: "the database is read-only: use the writer's endpoint, not a reader's", Server: true}
	case writes && f.updates == setReadOnly:
		return purge.NotPurgeable{Kind: purge.ReadOnlyDatabase, Message: "the database is set read-only: ALTER DATABASE " + quoteName(f.database) + " SET READ_WRITE;"}
	case !f.selectable:
		return purge.NotPurgeable{Kind: purge.NoSelectRight, Message: f.mayNotRead()}
	case f.filtered:
		return purge.NotPurgeable{Kind: purge.RowSecurity, Message: fmt.Sprintf("row-level security hides rows of %s from the login, and expired ones would stay: have the policy's filter let edfi_token_purge pass, or ALTER SECURITY POLICY its name DROP FILTER PREDICATE ON %[1]s;", f.table)}
	case writes:
		return f.mayDelete()
	}
	return nil
}

// mayDelete returns nil, or the error for a login that may only read.
func (f facts) mayDelete() error {
	if f.deletable {
		return nil
	}
	return purge.NotPurgeable{Kind: purge.NoDeleteRight, Message: "the login may not delete tokens: " + f.grant()}
}

func (f facts) mayNotRead() string { return "the login may not read when tokens expire: " + f.grant() }

// grant gives all that a purge needs. No message names the login that is used.
func (f facts) grant() string {
	script := "infra/sqlserver/role.sql"
	if f.table.Name != purge.ClientAccessTokens.Name {
		script += " and tables.sql with all names of TABLES, as docs/tables.md says"
	}
	return fmt.Sprintf("run %s, or for the user of the login GRANT SELECT, DELETE ON %s TO edfi_token_purge;", script, f.table)
}

// findings are what costs time in each run.
func (f facts) findings() (found []purge.Finding) {
	if !f.indexed {
		found = append(found, f.missingIndex())
	}
	if f.policed {
		found = append(found, f.policyUnseen())
	}
	return found
}

// policyUnseen is the finding for a table that seems to have a policy. Whether that hides
// any rows nobody can know who does not see them.
func (f facts) policyUnseen() purge.Finding {
	return purge.PolicyUnseen.Found(fmt.Sprintf("a row-level security policy seems to be on %s, for the server keeps the table's statistics from the login: expired rows that it hides would stay, untold. GRANT VIEW DEFINITION TO edfi_token_purge; lets a check say for certain, or have an administrator look in sys.security_policies", f.table))
}

// missingIndex is the finding for a table without the index on expiration.
func (f facts) missingIndex() purge.Finding {
	return purge.MissingExpirationIndex.Found(fmt.Sprintf("no index finds rows by their expiration, so each run reads the whole table once. Create it: CREATE INDEX IX_%s_%s ON %s (%[2]s DESC); It holds up the API while it is built; Enterprise Edition offers WITH (ONLINE = ON)",
		f.table.Relation, f.table.Expiration, f.table))
}
