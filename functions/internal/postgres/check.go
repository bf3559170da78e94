package postgres

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
)

// oldestVersion is the oldest that this package was tried with.
const oldestVersion = 13_00_00

// Check implements [purge.Table].
func (t *table) Check(ctx context.Context) ([]purge.Finding, error) {
	var (
		version, zone, role            string
		triggers, rules, references    string
		rowSecurity, pgAgent, pgCron   bool
		tableSize, indexes, live, dead int64
	)
	if err := t.begin(ctx, byIndex, sqlCheck, 1); err != nil {
		return nil, t.explain("check the database", err)
	}
	err := t.conn.QueryRow(ctx, sqlCheck, t.oid).Scan(&version, &zone, &role, &triggers, &rules, &rowSecurity,
		&references, &tableSize, &indexes, &live, &dead, &pgAgent, &pgCron)
	if err != nil {
		return nil, t.explain("check the database", err)
	}
	found := []purge.Finding{t.encryption()}
	add := func(f purge.Finding) { found = append(found, f) }

	if t.version < oldestVersion {
		add(purge.Warning("version", fmt.Sprintf("PostgreSQL %s is older than 13, the first version that this was tried with", version)))
	} else {
		add(purge.Info("version", "PostgreSQL "+version))
	}
	switch {
	case !t.examined.deletable:
		add(purge.Fault("no-delete-right", "the login may not delete: GRANT DELETE ON dbo.clientaccesstokens TO "+pgx.Identifier{role}.Sanitize()+"; infra/postgres/role.sql does"))
	case t.places:
		add(purge.Info("rights", "the login may delete tokens, and read them, which takes more than the least right"))
	default:
		add(purge.Info("rights", "the login may delete tokens and read when they expire, but read no token"))
	}
	if t.examined.standby {
		add(purge.Fault("reader-endpoint", "the server is a read-only standby: use the writer's endpoint"))
	}
	if t.indexed {
		add(purge.Info("expiration-index", "an index finds rows by their expiration"))
	}
	if strings.EqualFold(zone, "UTC") || strings.HasSuffix(zone, "/UTC") || strings.EqualFold(zone, "GMT") {
		add(purge.Info("time-zone", "sessions are in "+zone))
	} else {
		add(purge.Warning("time-zone", "sessions are in "+zone+"; this purge does not mind, but DELETE ... WHERE expiration < now() takes live tokens or leaves expired ones: stop any job that runs it"))
	}
	if triggers != "" {
		add(purge.Warning("delete-trigger", "triggers run for each delete, which costs time and may keep rows: "+triggers))
	}
	if rules != "" {
		add(purge.Warning("delete-rule", "rules rewrite each delete, so that counts may be wrong: "+rules+"; drop them"))
	}
	if rowSecurity {
		add(purge.Warning("row-security", "row-level security hides rows from the login, so that they stay: ALTER ROLE "+pgx.Identifier{role}.Sanitize()+" BYPASSRLS, or a policy for it"))
	}
	if references != "" {
		add(purge.Warning("referenced", "foreign keys lead to the table, which Ed-Fi has none of; they can refuse a delete: "+references))
	}
	size := fmt.Sprintf("%s and %s of indexes, about %d live and %d dead rows", bytes(tableSize), bytes(indexes), live, dead)
	if dead > 100_000 && dead > live {
		add(purge.Warning("dead-rows", size+": autovacuum has not come after the deletes; VACUUM (ANALYZE) dbo.clientaccesstokens;"))
	} else {
		add(purge.Info("size", size))
	}
	jobs, err := t.jobs(ctx, pgAgent, pgCron)
	return append(found, jobs), t.explain("look for jobs", err)
}

// encryption tells how the connection is secured.
func (t *table) encryption() purge.Finding {
	if conn, ok := t.conn.PgConn().Conn().(*tls.Conn); ok {
		state := conn.ConnectionState()
		return purge.Encryption(&state)
	}
	return purge.Encryption(nil)
}

// jobs tells who else deletes tokens.
func (t *table) jobs(ctx context.Context, pgAgent, pgCron bool) (purge.Finding, error) {
	var jobs []string
	for _, kept := range []struct {
		here bool
		sql  string
	}{{pgAgent, sqlJobsOfPgAgent}, {pgCron, sqlJobsOfPgCron}} {
		if !kept.here {
			continue
		}
		read, _ := t.conn.Query(ctx, kept.sql) // the error comes below
		names, err := pgx.CollectRows(read, pgx.RowTo[string])
		if err != nil {
			return purge.Finding{}, err
		}
		jobs = append(jobs, names...)
	}
	if jobs != nil {
		return purge.Warning("other-cleaner", strings.Join(jobs, ", ")+": deletes tokens too; infra/postgres/stop-old-job.sql stops it"), nil
	}
	return purge.Info("no-other-cleaner", "no job of pgAgent or pg_cron that the login may see in this database deletes tokens; they may be kept in another one, often postgres"), nil
}

func bytes(n int64) string {
	const mega = 1 << 20
	if n < 10*mega {
		return fmt.Sprintf("%d kB", n>>10)
	}
	return fmt.Sprintf("%d MB", n/mega)
}
