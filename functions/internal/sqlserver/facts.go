package sqlserver

import (
	"context"
	"errors"
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
		return purge.Unfit{Code: "no-table", Message: fmt.Sprintf("table %s does not exist in database %s, or the login has no right on it: is it an Ed-Fi admin database?", name, database)}
	case f.typeName == "":
		return fmt.Errorf("%s has no column Expiration", name)
	case f.typeName != "datetime":
		return fmt.Errorf("%s.Expiration is of type %s; Ed-Fi's is datetime, and another type has another notion of expired", name, f.typeName)
	case writes && f.updates == readOnly:
		return errors.New("the database is read-only: use the writer's endpoint, not a reader's")
	}
	var missing []string
	if !f.selectable {
		missing = append(missing, "SELECT ON "+name)
	}
	if writes && !f.deletable {
		missing = append(missing, "DELETE ON "+name)
	}
	if missing != nil {
		return fmt.Errorf("permission denied: the login lacks %s; infra/sqlserver/role.sql grants it", missing)
	}
	return nil
}

// missingIndex is the finding for a table without the index on expiration.
func (f facts) missingIndex() purge.Finding {
	const create = "CREATE INDEX IX_ClientAccessTokens_Expiration ON dbo.ClientAccessTokens (Expiration DESC);"
	return purge.Warning("missing-expiration-index", "no index finds rows by their expiration, so each run reads the whole table once. Create it: "+create+" It holds up the API while it is built; Enterprise Edition offers WITH (ONLINE = ON)")
}
