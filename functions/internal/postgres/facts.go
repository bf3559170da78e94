package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"edfi-token-purge/functions/internal/purge"
)

// facts is the answer to sqlFacts.
type facts struct {
	now       pgtype.Timestamp
	database  string // that the connection opened
	version   int    // 150004 is 15.4
	standby   bool
	oid       uint32 // 0 is no table
	plain     bool   // an ordinary table, neither partitioned nor a view
	typeName  string // of the column expiration; "" is no such column
	usage     bool
	selectExp bool
	selectAll bool
	deletable bool
	filtered  bool // row-level security applies to the login
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
		err = results.QueryRow().Scan(&f.now, &f.database, &f.version, &f.standby, &f.oid, &f.plain, &f.typeName,
			&f.usage, &f.selectExp, &f.selectAll, &f.deletable, &f.filtered, &f.indexed)
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
	case f.database != database: // the server cuts a name to 63 bytes, and a pooler may lead anywhere
		return purge.Unfit{Code: "other-database", Message: fmt.Sprintf("the connection opened database %q instead of %q", f.database, database), Server: true}
	case f.oid == 0:
		return purge.Unfit{Code: "no-table", Message: fmt.Sprintf("table %s does not exist in database %s: is it an Ed-Fi admin database?", name, database)}
	case f.typeName == "":
		return purge.Unfit{Code: "wrong-table", Message: name + " has no column expiration: is it Ed-Fi's table?"}
	case f.typeName != "timestamp without time zone":
		return purge.Unfit{Code: "wrong-table", Message: fmt.Sprintf("%s.expiration is of type %s; Ed-Fi's is timestamp without time zone, and another type has another notion of expired", name, f.typeName)}
	case writes && f.standby:
		return purge.Unfit{Code: "reader-endpoint", Message: "the server is a read-only standby: use the writer's endpoint, not a reader's", Server: true}
	case !f.usage || !f.selectExp:
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
const grant = "run infra/postgres/role.sql, or for the role of the login GRANT USAGE ON SCHEMA dbo TO edfi_token_purge; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO edfi_token_purge;"

// findings are what costs time, or leaves rows behind, in each run.
func (f facts) findings(places bool) (found []purge.Finding) {
	if f.filtered {
		found = append(found, purge.Warning("row-security", "row-level security applies to the login; expired rows that it hides stay: for the role of the login ALTER ROLE edfi_token_purge BYPASSRLS; or CREATE POLICY token_purge ON dbo.clientaccesstokens TO edfi_token_purge USING (true);"))
	}
	if !f.indexed {
		found = append(found, f.missingIndex(places))
	}
	return found
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
