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

// Check implements [purge.Conn].
func (c *conn) Check(ctx context.Context) ([]purge.Finding, error) {
	var (
		version, zone                  string
		triggers, rules, references    string
		pgAgent, pgCron                *bool
		hidden                         bool
		tableSize, indexes, live, dead int64
	)
	if err := c.prepare(ctx, byIndex, sqlCheck, 1); err != nil {
		return nil, c.explain("check the database", err)
	}
	err := c.pg.QueryRow(ctx, sqlCheck, c.facts.oid).Scan(&version, &zone, &triggers, &rules, &references,
		&tableSize, &indexes, &live, &dead, &pgAgent, &pgCron, &hidden)
	if err != nil {
		return nil, c.explain("check the database", err)
	}
	found := []purge.Finding{c.encryption()}
	add := func(f purge.Finding) { found = append(found, f) }

	if c.facts.version < oldestVersion {
		add(purge.Version.At(purge.LevelWarning, fmt.Sprintf("PostgreSQL %s is older than 13, the first version that this was tried with", version)))
	} else {
		add(purge.Version.Found("PostgreSQL " + version))
	}
	switch {
	case !c.facts.deletable: // the error says so
	case c.facts.canUseCTID():
		add(purge.Rights.Found("the login may delete tokens, and read them, which takes more than the least right"))
	default:
		add(purge.Rights.Found("the login may delete tokens and read when they expire, but read no token"))
	}
	if c.facts.standby {
		add(purge.ReaderEndpoint.Found("the server is a read-only standby: use the writer's endpoint"))
	}
	if c.facts.indexed {
		add(purge.ExpirationIndex.Found("an index finds rows by their expiration"))
	}
	if strings.EqualFold(zone, "UTC") || strings.HasSuffix(zone, "/UTC") || strings.EqualFold(zone, "GMT") {
		add(purge.TimeZone.Found("sessions are in " + zone))
	} else {
		add(purge.TimeZone.At(purge.LevelWarning, "sessions are in "+zone+"; this purge does not mind, but DELETE ... WHERE expiration < now() takes live tokens or leaves expired ones: stop any job that runs it"))
	}
	if triggers != "" {
		add(purge.DeleteTrigger.Found("triggers run for each delete, which costs time and may keep rows; without them: " + triggers))
	}
	if rules != "" {
		add(purge.DeleteRule.Found("rules rewrite each delete, so that counts may be wrong; without them: " + rules))
	}
	if references != "" {
		add(purge.Referenced.Found("foreign keys lead to the table, which Ed-Fi has none of; they can refuse a delete; without them: " + references))
	}
	size := fmt.Sprintf("%s and %s of indexes, about %d live and %d dead rows", bytes(tableSize), bytes(indexes), live, dead)
	if dead > 100_000 && dead > live {
		add(purge.DeadRows.Found(size + ": autovacuum has not come after the deletes; VACUUM (ANALYZE) dbo.clientaccesstokens;"))
	} else {
		add(purge.Size.Found(size))
	}
	jobs, err := c.jobs(ctx, pgAgent, pgCron, hidden)
	if err != nil {
		return found, c.explain("look for jobs", err)
	}
	return append(found, jobs), c.facts.mayDelete()
}

// encryption tells how the connection is secured.
func (c *conn) encryption() purge.Finding {
	if conn, ok := c.pg.PgConn().Conn().(*tls.Conn); ok {
		state := conn.ConnectionState()
		return purge.Encryption(&state)
	}
	return purge.Encryption(nil)
}

// jobs tells who else deletes tokens. Whether the login may read each scheduler's
// jobs is nil where they are not in this database.
func (c *conn) jobs(ctx context.Context, pgAgent, pgCron *bool, unseen bool) (purge.Finding, error) {
	var jobs []string
	for _, kept := range []struct {
		readable *bool
		sql      string
	}{{pgAgent, sqlJobsOfPgAgent}, {pgCron, sqlJobsOfPgCron}} {
		if kept.readable == nil {
			continue
		}
		if !*kept.readable {
			unseen = true
			continue
		}
		read, _ := c.pg.Query(ctx, kept.sql) // the error comes below
		names, err := pgx.CollectRows(read, pgx.RowTo[string])
		if err != nil {
			return purge.Finding{}, err
		}
		jobs = append(jobs, names...)
	}
	switch {
	case jobs != nil:
		return purge.OtherCleaner.Found("tokens are also deleted by " + strings.Join(jobs, ", ") + "; infra/postgres/stop-old-job.sql stops that"), nil
	case unseen:
		return purge.OtherCleanerUnseen.Found("the login may not see all jobs of pgAgent and pg_cron in this database; as an administrator, infra/postgres/stop-old-job.sql finds and stops those that delete tokens"), nil
	default:
		return purge.NoOtherCleaner.Found("no job of pgAgent or pg_cron in this database deletes tokens; they may be kept in another one, often postgres"), nil
	}
}

func bytes(n int64) string {
	const mega = 1 << 20
	if n < 10*mega {
		return fmt.Sprintf("%d kB", n>>10)
	}
	return fmt.Sprintf("%d MB", n/mega)
}
