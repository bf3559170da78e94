package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

const (
	// oldestVersion is the oldest that this package was tried with.
	oldestVersion = 13_00_00
	// manyDead is from how many dead rows on autovacuum is late.
	manyDead = 100_000
)

// checked is what sqlCheck returns.
type checked struct {
	version, zone                  string
	triggers, rules, references    string // the statements that end them; "" is none
	tableSize, indexes, live, dead int64
	pgAgent, pgCron                *bool // whether the login may read their jobs; nil where they are not here
	jobsHidden                     bool  // those of others are
}

// Check implements [purge.Conn].
func (c *conn) Check(ctx context.Context) ([]purge.Finding, error) {
	sql := c.facts.on(sqlCheck)
	if err := c.prepare(ctx, byIndex, sql, 1); err != nil {
		return nil, c.explain("check the database", err)
	}
	var k checked
	err := c.pg.QueryRow(ctx, sql, c.facts.oid).Scan(&k.version, &k.zone, &k.triggers, &k.rules, &k.references,
		&k.tableSize, &k.indexes, &k.live, &k.dead, &k.pgAgent, &k.pgCron, &k.jobsHidden)
	if err != nil {
		return nil, c.explain("check the database", err)
	}
	found := []purge.Finding{c.encryption(), c.checkVersion(k), k.checkTimeZone()}
	found = append(found, c.checkRights()...)
	if c.facts.indexed {
		found = append(found, purge.ExpirationIndex.Found("an index finds rows by their expiration"))
	}
	found = append(found, k.checkDeletes()...)
	found = append(found, c.checkSize(k))
	jobs, err := c.jobs(ctx, k)
	if err != nil {
		return found, c.explain("look for jobs", err)
	}
	return append(found, jobs), c.mayBegin(ctx)
}

// mayBegin returns nil, or what keeps any delete from beginning.
func (c *conn) mayBegin(ctx context.Context) error {
	if err := c.facts.mayDelete(); err != nil || c.facts.standby {
		return err
	}
	_, err := c.pg.Exec(ctx, c.facts.on(sqlWouldDelete))
	return c.explain("delete", err)
}

// WhySlow implements [purge.LookExplainer].
func (c *conn) WhySlow(ctx context.Context) ([]purge.Finding, error) {
	const dead = "a look for expired rows took long, as it passed over the index entries of deleted rows, which VACUUM could not clear away"
	what, mend := "nothing that this login can see; look for old transactions, replication slots and prepared transactions, then VACUUM", fmt.Sprintf("VACUUM (ANALYZE) %s;", c.facts.table)
	if err := c.prepare(ctx, byIndex, sqlHolder, 1); err != nil {
		return nil, c.explain("look for old snapshots", err)
	}
	err := c.pg.QueryRow(ctx, sqlHolder).Scan(&what, &mend)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, c.explain("look for old snapshots", err)
	}
	return []purge.Finding{purge.OldSnapshot.Found(fmt.Sprintf("%s. What holds them: %s. To end that: %s", dead, what, mend))}, nil
}

// WhatActs implements [purge.DeleteExplainer].
func (c *conn) WhatActs(ctx context.Context) (statements string, err error) {
	err = c.row(ctx, byIndex, &statements, c.facts.on(sqlWhatActs), c.facts.oid)
	return statements, c.explain("look for what acts on deletes", err)
}

// LockHolder implements [purge.LockTeller].
func (c *conn) LockHolder(ctx context.Context) (h purge.Holder, err error) {
	if err := c.prepare(ctx, byIndex, sqlLockHolder, 1); err != nil {
		return h, c.explain("look for who holds locks", err)
	}
	err = c.pg.QueryRow(ctx, sqlLockHolder, c.facts.leaves).Scan(&h.Name, &h.Mend)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return h, c.explain("look for who holds locks", err)
	}
	h.Name = redact.Login(h.Name, c.server.User, c.server.Password)
	return h, nil
}

// Survey implements [purge.Surveyor].
func (c *conn) Survey(ctx context.Context, table purge.Table) (rows int64, oldest *time.Time, there bool, err error) {
	other := facts{table: table.Lower()}
	var readable bool
	if err := c.prepare(ctx, inSequence, sqlSurvey, 1); err != nil {
		return 0, nil, false, c.explain("look at other tables", err)
	}
	err = c.pg.QueryRow(ctx, sqlSurvey, other.table.Schema, other.table.Relation, other.table.Expiration).
		Scan(&other.table.Relation, &other.table.Expiration, &rows, &readable)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, nil, false, nil
	case err != nil:
		return 0, nil, false, c.explain("look at other tables", err)
	case !readable:
		return rows, nil, true, nil
	}
	var eldest pgtype.Timestamp
	err = c.row(ctx, inSequence, &eldest, other.on(sqlEldest))
	if eldest.Valid && eldest.InfinityModifier == pgtype.Finite {
		oldest = &eldest.Time
	}
	return rows, oldest, true, c.explain("look at other tables", err)
}

func (c *conn) checkVersion(k checked) purge.Finding {
	if c.facts.version < oldestVersion {
		return purge.Version.At(purge.LevelWarning, fmt.Sprintf("PostgreSQL %s is older than 13, the first version that this was tried with", k.version))
	}
	return purge.Version.Found("PostgreSQL " + k.version)
}

func (c *conn) checkRights() (found []purge.Finding) {
	switch {
	case !c.facts.deletable: // the error says so
	case c.facts.selectAll:
		found = append(found, purge.Rights.Found("the login may delete tokens, and read them, which takes more than the least right"))
	default:
		found = append(found, purge.Rights.Found("the login may delete tokens and read when they expire, but read no token"))
	}
	switch {
	case c.facts.standby:
		found = append(found, purge.ReaderEndpoint.Found("the server is a read-only standby: use the writer's endpoint"))
	case c.facts.readOnly:
		found = append(found, purge.ReadOnly.Found(c.facts.writesOff()))
	}
	return found
}

func (k checked) checkTimeZone() purge.Finding {
	if strings.EqualFold(k.zone, "UTC") || strings.HasSuffix(k.zone, "/UTC") || strings.EqualFold(k.zone, "GMT") {
		return purge.TimeZone.Found("sessions are in " + k.zone)
	}
	return purge.TimeZone.At(purge.LevelWarning, "sessions are in "+k.zone+"; this purge does not mind, but DELETE ... WHERE expiration < now() takes live tokens or leaves expired ones: stop any job that runs it")
}

// checkDeletes finds what else happens at a delete.
func (k checked) checkDeletes() (found []purge.Finding) {
	if k.triggers != "" {
		found = append(found, purge.DeleteTrigger.Found("triggers run for each delete, which costs time and may keep rows; without them: "+k.triggers))
	}
	if k.rules != "" {
		found = append(found, purge.DeleteRule.Found("rules rewrite each delete, so that counts may be wrong; without them: "+k.rules))
	}
	if k.references != "" {
		found = append(found, purge.Referenced.Found("foreign keys lead to the table, which Ed-Fi has none of; they can refuse a delete; without them: "+k.references))
	}
	return found
}

func (c *conn) checkSize(k checked) purge.Finding {
	size := fmt.Sprintf("%s and %s of indexes, about %s live and %s dead rows", bytes(k.tableSize), bytes(k.indexes), purge.Grouped(k.live), purge.Grouped(k.dead))
	if k.dead > manyDead && k.dead > k.live {
		return purge.DeadRows.Found(fmt.Sprintf("%s: autovacuum has not come after the deletes: run VACUUM (ANALYZE) %s;", size, c.facts.table))
	}
	return purge.Size.Found(size)
}

// encryption tells how the connection is secured.
func (c *conn) encryption() purge.Finding {
	if conn, ok := c.pg.PgConn().Conn().(*tls.Conn); ok {
		state := conn.ConnectionState()
		return purge.Encryption(&state)
	}
	return purge.Encryption(nil)
}

// jobs tells who else deletes from the table.
func (c *conn) jobs(ctx context.Context, k checked) (purge.Finding, error) {
	var jobs, ends []string
	hidden := k.jobsHidden
	for _, kept := range []struct {
		readable *bool
		sql      string
	}{{k.pgAgent, sqlJobsOfPgAgent}, {k.pgCron, sqlJobsOfPgCron}} {
		if kept.readable == nil {
			continue
		}
		if !*kept.readable {
			hidden = true
			continue
		}
		var job, end string
		read, _ := c.pg.Query(ctx, kept.sql, cleans(c.table)) // the error comes below
		_, err := pgx.ForEachRow(read, []any{&job, &end}, func() error {
			jobs, ends = append(jobs, job), append(ends, end)
			return nil
		})
		if err != nil {
			return purge.Finding{}, err
		}
	}
	unseen := ""
	if hidden {
		unseen = fmt.Sprintf("the login may not see all jobs of pgAgent and pg_cron in this database; as an administrator, look for those that delete from %s", c.facts.table)
		if c.table.Name == purge.ClientAccessTokens.Name {
			unseen += ": infra/postgres/stop-old-job.sql finds and stops them"
		}
	}
	return purge.Cleaners(c.table, slices.Compact(jobs), ends, unseen,
		"no job of pgAgent or pg_cron in this database deletes rows; they may be kept in another one, often postgres"), nil
}

// cleans returns the regular expression of a job that deletes from the table. A word as
// common as the Admin API's for its table counts where the job names its schema too.
func cleans(t purge.Table) string {
	deletes := `\mdelete\M.*\m` + strings.ToLower(t.Relation) + `\M`
	if t.Name == purge.AdminTokens.Name {
		return `^(?=.*\m` + t.Schema + `\M).*` + deletes
	}
	return deletes
}

func bytes(n int64) string {
	const mega = 1 << 20
	if n < 10*mega {
		return purge.Grouped(n>>10) + " kB"
	}
	return purge.Grouped(n/mega) + " MB"
}
