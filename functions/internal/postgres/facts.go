package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"edfi-token-purge/functions/internal/purge"
)

// facts is the answer to sqlFacts.
type facts struct {
	now       pgtype.Timestamp
	version   int // 150004 is 15.4
	standby   bool
	oid       uint32 // 0 is no table
	plain     bool   // an ordinary table, neither partitioned nor a view
	typeName  string // of the column expiration; "" is no such column
	usage     bool
	selectExp bool
	selectAll bool
	deletable bool
	indexed   bool
}

// examine prepares the session and reads the facts, in one round trip.
func (t *table) examine(ctx context.Context) (facts, error) {
	var f facts
	var batch pgx.Batch
	batch.Queue(sqlSettings)
	batch.Queue(sqlFacts)
	results := t.conn.SendBatch(ctx, &batch)
	_, err := results.Exec()
	if err == nil {
		err = results.QueryRow().Scan(&f.now, &f.version, &f.standby, &f.oid, &f.plain, &f.typeName,
			&f.usage, &f.selectExp, &f.selectAll, &f.deletable, &f.indexed)
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	return f, t.explain("examine the database", err)
}

// fault answers why the table can't be purged, or nil.
func (f facts) fault(database string, writes bool) error {
	const name = "dbo.clientaccesstokens"
	switch {
	case f.oid == 0:
		return purge.Unfit{Code: "no-table", Message: fmt.Sprintf("table %s does not exist in database %s: is it an Ed-Fi admin database?", name, database)}
	case f.typeName == "":
		return fmt.Errorf("%s has no column expiration", name)
	case f.typeName != "timestamp without time zone":
		return fmt.Errorf("%s.expiration is of type %s; Ed-Fi's is timestamp without time zone, and another type has another notion of expired", name, f.typeName)
	case writes && f.standby:
		return errors.New("the server is a read-only standby: use the writer's endpoint, not a reader's")
	}
	var missing []string
	if !f.usage {
		missing = append(missing, "USAGE ON SCHEMA dbo")
	}
	if !f.selectExp {
		missing = append(missing, "SELECT (expiration) ON "+name)
	}
	if writes && !f.deletable {
		missing = append(missing, "DELETE ON "+name)
	}
	if missing != nil {
		return fmt.Errorf("permission denied: the role lacks %s; infra/postgres/role.sql grants it", missing)
	}
	return nil
}

// missingIndex is the finding for a table without the index on expiration.
func (f facts) missingIndex(places bool) purge.Finding {
	const create = "CREATE INDEX CONCURRENTLY ix_clientaccesstokens_expiration ON dbo.clientaccesstokens (expiration DESC);"
	how := "each run reads the whole table once"
	if !places {
		how = "each batch reads the whole table; with GRANT SELECT on the table it would be one reading a run"
	}
	return purge.Warning("missing-expiration-index", "no index finds rows by their expiration, so "+how+". Create it: "+create)
}
