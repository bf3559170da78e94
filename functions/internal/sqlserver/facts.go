package sqlserver

import (
	"context"
	"fmt"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// expirationType is the type of Ed-Fi's column. Another type has another notion of
// expired.
const expirationType = "datetime"

// readOnly is what a database that takes no deletes says of itself.
const readOnly = "READ_ONLY"

// facts is what sqlFacts returns.
type facts struct {
	table      purge.Table
	now        time.Time
	exact      bool   // an expiration comes to the client as it is
	updates    string // READ_WRITE or READ_ONLY
	oid        int    // 0 is no table, or none that the login may know of
	typeName   string // of the column Expiration; "" is no such column
	selectable bool
	deletable  bool
	indexed    bool // an index finds rows by their expiration
}

// examine prepares the session and reads the facts, in one round trip.
func (c *conn) examine(ctx context.Context) error {
	f := facts{table: c.table}
	err := c.session.QueryRowContext(ctx, sqlSettings+sqlFacts).Scan(&f.now, &f.exact, &f.updates, &f.oid, &f.typeName,
		&f.selectable, &f.deletable, &f.indexed)
	c.facts = f
	return c.explain("examine the database", err)
}

// fault returns why the table can't be purged, or nil.
func (f facts) fault(database string, writes bool) error {
	switch {
	case f.oid == 0:
		return purge.NotPurgeable{Kind: purge.NoTable, Message: fmt.Sprintf("table %s does not exist in database %s, or the login has no right on it: is it an Ed-Fi admin database? Then %s", f.table, database, f.grant())}
	case f.typeName == "":
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf("%s has no column %s: is it Ed-Fi's table?", f.table, f.table.Expiration)}
	case f.typeName != expirationType:
		return purge.NotPurgeable{Kind: purge.WrongTable, Message: fmt.Sprintf("%s.%s is of type %s; Ed-Fi's is %s, and another type has another notion of expired", f.table, f.table.Expiration, f.typeName, expirationType)}
	case writes && f.updates == readOnly:
		return purge.NotPurgeable{Kind: purge.ReaderEndpoint, Message: "the database is read-only: use the writer's endpoint, not a reader's", Server: true}
	case !f.selectable:
		return purge.NotPurgeable{Kind: purge.NoSelectRight, Message: "the login may not read when tokens expire: " + f.grant()}
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

// grant gives all that a purge needs. No message names the login that is used.
func (f facts) grant() string {
	return fmt.Sprintf("run infra/sqlserver/role.sql, or for the user of the login GRANT SELECT, DELETE ON %s TO edfi_token_purge;", f.table)
}

// findings are what costs time in each run.
func (f facts) findings() (found []purge.Finding) {
	if !f.indexed {
		found = append(found, f.missingIndex())
	}
	return found
}

// missingIndex is the finding for a table without the index on expiration.
func (f facts) missingIndex() purge.Finding {
	return purge.MissingExpirationIndex.Found(fmt.Sprintf("no index finds rows by their expiration, so each run reads the whole table once. Create it: CREATE INDEX IX_%s_%s ON %s (%[2]s DESC); It holds up the API while it is built; Enterprise Edition offers WITH (ONLINE = ON)",
		f.table.Relation, f.table.Expiration, f.table))
}
