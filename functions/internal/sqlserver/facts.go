package sqlserver

import (
	"context"
	"fmt"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// readOnly is what a database that takes no deletes says of itself.
const readOnly = "READ_ONLY"

// facts is the answer to sqlFacts.
type facts struct {
	now        time.Time
	exact      bool   // a datetime holds ticks of 1/300 s, as the driver's do
	updates    string // READ_WRITE or READ_ONLY
	oid        int    // 0 is no table, or none that the login may know of
	typeName   string // of the column Expiration; "" is no such column
	selectable bool
	deletable  bool
	indexed    bool
}

// examine prepares the session and reads the facts, in one round trip.
func (t *table) examine(ctx context.Context) (facts, error) {
	var f facts
	err := t.conn.QueryRowContext(ctx, sqlSettings+sqlFacts).Scan(&f.now, &f.exact, &f.updates, &f.oid, &f.typeName,
		&f.selectable, &f.deletable, &f.indexed)
	return f, t.explain("examine the database", err)
}

// fault answers why the table can't be purged, or nil.
func (f facts) fault(database string, writes bool) error {
	const name = "dbo.ClientAccessTokens"
	switch {
	case f.oid == 0:
		return purge.Unfit{Code: "no-table", Message: fmt.Sprintf("table %s does not exist in database %s, or the login has no right on it: is it an Ed-Fi admin database? Then %s", name, database, grant)}
	case f.typeName == "":
		return purge.Unfit{Code: "wrong-table", Message: name + " has no column Expiration: is it Ed-Fi's table?"}
	case f.typeName != "datetime":
		return purge.Unfit{Code: "wrong-table", Message: fmt.Sprintf("%s.Expiration is of type %s; Ed-Fi's is datetime, and another type has another notion of expired", name, f.typeName)}
	case writes && f.updates == readOnly:
		return purge.Unfit{Code: "reader-endpoint", Message: "the database is read-only: use the writer's endpoint, not a reader's", Server: true}
	case !f.selectable:
		return purge.Unfit{Code: "no-select-right", Message: "the login may not read when tokens expire: " + grant}
	case writes:
		return f.mayDelete()
	}
	return nil
}

// mayDelete answers nil, or the error for a login that may only read.
func (f facts) mayDelete() error {
	if f.deletable {
		return nil
	}
	return purge.Unfit{Code: "no-delete-right", Message: "the login may not delete tokens: " + grant}
}

// grant gives all that a purge needs. No message names the login that is used.
const grant = "run infra/sqlserver/role.sql, or for the user of the login GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO edfi_token_purge;"

// findings are what costs time in each run.
func (f facts) findings() (found []purge.Finding) {
	if !f.indexed {
		found = append(found, f.missingIndex())
	}
	return found
}

// missingIndex is the finding for a table without the index on expiration.
func (f facts) missingIndex() purge.Finding {
	const create = "CREATE INDEX IX_ClientAccessTokens_Expiration ON dbo.ClientAccessTokens (Expiration DESC);"
	return purge.Warning("missing-expiration-index", "no index finds rows by their expiration, so each run reads the whole table once. Create it: "+create+" It holds up the API while it is built; Enterprise Edition offers WITH (ONLINE = ON)")
}
