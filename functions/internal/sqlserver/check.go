package sqlserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// oldestVersion is the oldest that this package supports, SQL Server 2017.
const oldestVersion = 14

// oldestLevel is the oldest compatibility level that all statements are written for,
// that of SQL Server 2012.
const oldestLevel = 110

// checked is what sqlCheck returns, and the statements after it.
type checked struct {
	product, version, edition string
	level                     int  // of compatibility
	snapshot                  bool // reads wait for no writes
	offset                    int  // minutes of the server's clock from UTC
	seesAll                   bool // triggers, foreign keys and policies
	triggers, insteadOf       []string
	references, burdens       []string
}

// Check implements [purge.Conn].
func (c *conn) Check(ctx context.Context) ([]purge.Finding, error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return nil, c.explain("check the database", err)
	}
	defer cancel()
	var r checked
	err = c.session.QueryRowContext(ctx, c.facts.on(sqlCheck)).Scan(&r.product, &r.version, &r.edition, &r.level, &r.snapshot, &r.offset, &r.seesAll)
	if err == nil {
		err = c.checkDeletes(ctx, &r)
	}
	if err != nil {
		return nil, c.explain("check the database", late(ctx, err))
	}
	found := []purge.Finding{purge.Encryption(c.secured), r.supported()}
	found = append(found, c.facts.checkFindings()...)
	found = append(found, c.key(ctx)...)
	found = append(found, r.findings(c.database, c.table)...)
	if c.facts.triggered && r.triggers == nil && r.insteadOf == nil {
		found = append(found, purge.DeleteTrigger.Found("a trigger on DELETE may be there that the login can't see: each batch is proved, which costs time; an administrator finds it in sys.triggers"))
	}
	if sees, err := c.seesSessions(ctx); err == nil && !sees {
		found = append(found, purge.SessionsUnseen.Found("the login may not see other sessions, so that no run can name who holds locks: in master, GRANT VIEW SERVER STATE TO edfi_token_purge; lets it"))
	}
	found = append(found, c.size(ctx), c.jobs(ctx))
	return found, c.facts.mayDelete()
}

// checkDeletes reads what else happens at a delete.
func (c *conn) checkDeletes(ctx context.Context, r *checked) error {
	read, err := c.session.QueryContext(ctx, c.facts.on(sqlDeleteTriggers))
	if err != nil {
		return err
	}
	defer read.Close()
	for read.Next() {
		var name string
		var insteadOf bool
		if err := read.Scan(&name, &insteadOf); err != nil {
			return err
		}
		mend := fmt.Sprintf("ALTER TABLE %s DISABLE TRIGGER %s;", c.table, name)
		if r.triggers = append(r.triggers, mend); insteadOf {
			r.insteadOf = append(r.insteadOf, name)
		}
	}
	if err := read.Err(); err != nil {
		return err
	}
	if r.references, err = c.texts(ctx, sqlReferences); err == nil && c.facts.exact {
		r.burdens, err = c.texts(ctx, sqlBurdens)
	}
	return err
}

// texts returns the column of texts that sql reads.
func (c *conn) texts(ctx context.Context, statement string) (all []string, err error) {
	read, err := c.session.QueryContext(ctx, c.facts.on(statement))
	if err != nil {
		return nil, err
	}
	defer read.Close()
	for read.Next() {
		var text string
		if err := read.Scan(&text); err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, read.Err()
}

// WhySlow implements [purge.LookExplainer]: a look takes long that waits for locks.
func (c *conn) WhySlow(ctx context.Context) ([]purge.Finding, error) {
	holders, err := c.lockHolders(ctx)
	if err != nil || holders == nil {
		return nil, err
	}
	var names []string
	for _, h := range holders {
		names = append(names, h.Name)
	}
	return []purge.Finding{purge.LockHolder.Found("locks on the table are held by " + strings.Join(names, "; "))}, nil
}

// WhatActs implements [purge.DeleteExplainer].
func (c *conn) WhatActs(ctx context.Context) (statements string, err error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return "", err
	}
	defer cancel()
	var r checked
	err = c.checkDeletes(ctx, &r)
	return strings.Join(slices.Concat(r.triggers, r.references), " "), c.explain("look for what acts on deletes", late(ctx, err))
}

// LockHolder implements [purge.LockTeller].
func (c *conn) LockHolder(ctx context.Context) (purge.Holder, error) {
	holders, err := c.lockHolders(ctx)
	if len(holders) == 0 {
		return purge.Holder{}, err
	}
	return holders[0], err
}

// lockHolders returns who holds locks on the table, whose last request is longest ago
// first. On SQL Server that is for a login with VIEW SERVER STATE to see.
func (c *conn) lockHolders(ctx context.Context) (holders []purge.Holder, err error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	if sees, err := c.seesSessions(ctx); err != nil || !sees {
		return nil, c.explain("look for who holds locks", late(ctx, err))
	}
	statement := babelfishBlockers
	if c.facts.exact {
		statement = sqlBlockers
	}
	read, err := c.session.QueryContext(ctx, c.facts.on(statement))
	if err != nil {
		return nil, c.explain("look for who holds locks", late(ctx, err))
	}
	defer read.Close()
	for read.Next() {
		var session int
		var who string
		if err := read.Scan(&session, &who); err != nil {
			return nil, c.explain("look for who holds locks", late(ctx, err))
		}
		holders = append(holders, purge.Holder{
			Name: redact.Login(fmt.Sprintf("session %d of %s", session, who), c.server.User, c.server.Password),
			Mend: fmt.Sprintf("KILL %d;", session),
		})
	}
	return holders, c.explain("look for who holds locks", late(ctx, read.Err()))
}

// seesSessions tells whether the login may see who holds locks. On Babelfish everybody may.
func (c *conn) seesSessions(ctx context.Context) (sees bool, err error) {
	if !c.facts.exact {
		return true, nil
	}
	err = c.session.QueryRowContext(ctx, sqlSeesSessions).Scan(&sees)
	return sees, err
}

// Survey implements [purge.Surveyor]. A table on which the login has no right is none to
// it.
func (c *conn) Survey(ctx context.Context, table purge.Table) (rows int64, oldest *time.Time, there bool, err error) {
	other := facts{table: table}
	var readable bool
	err = c.row(ctx, []any{&rows, &readable}, other.on(sqlSurvey))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, nil, false, nil
	case err != nil:
		return 0, nil, false, c.explain("look at other tables", err)
	case !readable:
		return rows, nil, true, nil
	}
	var eldest sql.NullTime
	err = c.row(ctx, []any{&eldest}, other.on(sqlEldest))
	if eldest.Valid {
		oldest = &eldest.Time
	}
	return rows, oldest, true, c.explain("look at other tables", err)
}

// supported tells the server's version. Babelfish's says nothing of what it can do.
func (r checked) supported() purge.Finding {
	text := fmt.Sprintf("%s %s, %s", r.product, r.version, r.edition)
	major, _, _ := strings.Cut(r.version, ".")
	if n, _ := strconv.Atoi(major); n < oldestVersion && r.product != babelfish {
		return purge.Version.At(purge.LevelWarning, text+", is older than 2017 (14), the first version that this is for")
	}
	if r.level < oldestLevel {
		return purge.Version.At(purge.LevelWarning, fmt.Sprintf("%s; the database's compatibility level is %d, below 110, the first that this is for: ALTER DATABASE ... SET COMPATIBILITY_LEVEL", text, r.level))
	}
	return purge.Version.Found(text)
}

// checkFindings are the facts that a check tells in any case.
func (f facts) checkFindings() (found []purge.Finding) {
	if f.deletable { // else the error says so
		found = append(found, purge.Rights.Found("the login may read and delete tokens"))
	}
	if f.updates == readOnly {
		found = append(found, purge.ReaderEndpoint.Found("the database is read-only: use the writer's endpoint"))
	}
	if f.updates == setReadOnly {
		found = append(found, purge.ReadOnlyDatabase.Found("the database is set read-only: ALTER DATABASE "+quoteName(f.database)+" SET READ_WRITE;"))
	}
	if f.indexed {
		found = append(found, purge.ExpirationIndex.Found("an index finds rows by their expiration"))
	}
	return found
}

// key tells what the key lacks that a purge needs of it: ranges that tell rows apart, and
// where no index finds expirations, one that finds keys.
func (c *conn) key(ctx context.Context) []purge.Finding {
	f := c.facts
	if !f.keyed() {
		return []purge.Finding{purge.OddKey.Found(fmt.Sprintf("%s.%s is of type %s; Ed-Fi's is %s: where many rows share one expiration, or no index finds them, each batch reads anew what the ones before it read", f.table, f.table.Key, f.keyType, typeGUID))}
	}
	leads := true
	if !f.indexed {
		c.session.QueryRowContext(ctx, f.on("SELECT "+strings.ReplaceAll(sqlIndexed, "{expiration}", "{key}"))).Scan(&leads) //nolint:errcheck // a server that doesn't say has one
	}
	if leads {
		return nil
	}
	return []purge.Finding{purge.OddKey.Found(fmt.Sprintf("no index begins with %s.%s, which Ed-Fi's primary key does: as none finds rows by their expiration either, each batch reads the whole table; create the index on %s", f.table, f.table.Key, f.table.Expiration))}
}

// findings are what may get in the way of a purge, or a purge in the way of others.
func (r checked) findings(database string, table purge.Table) []purge.Finding {
	found := []purge.Finding{purge.TimeZone.Found(fmt.Sprintf("the server's clock is %+d minutes from UTC; tokens are kept and compared in UTC", r.offset))}
	if r.triggers != nil {
		text := "triggers run for each delete, which costs time and may keep rows; without them: "
		if r.insteadOf != nil {
			text = strings.Join(r.insteadOf, " and ") + " stands in for each delete (INSTEAD OF), so that rows go only if it deletes them; without triggers: "
		}
		found = append(found, purge.DeleteTrigger.Found(text+strings.Join(r.triggers, " ")))
	}
	if r.references != nil {
		found = append(found, purge.Referenced.Found("foreign keys lead to the table, which Ed-Fi has none of; they can refuse a delete; without them: "+strings.Join(r.references, " ")))
	}
	if r.burdens != nil {
		found = append(found, purge.DeleteBurden.Found("each delete does more than Ed-Fi's table asks of it: "+strings.Join(r.burdens, "; ")))
	}
	if !r.seesAll && r.product != babelfish {
		found = append(found, purge.DefinitionsUnseen.Found("the login may not see triggers, foreign keys and row-level security policies: GRANT VIEW DEFINITION ON "+table.String()+" TO edfi_token_purge; shows the table's, and GRANT VIEW DEFINITION TO edfi_token_purge; all, or check as an administrator"))
	}
	if r.snapshot {
		return append(found, purge.RCSI.Found("READ_COMMITTED_SNAPSHOT is on: the API's reads wait for no delete"))
	}
	return append(found, purge.RCSIOff.Found("the API's reads wait for each batch's deletes: ALTER DATABASE "+quoteName(database)+" SET READ_COMMITTED_SNAPSHOT ON, at a quiet time"))
}

// size tells how large the table is. Not every server tells its pages.
func (c *conn) size(ctx context.Context) purge.Finding {
	text := fmt.Sprintf("about %s rows", purge.Grouped(max(0, c.facts.rows)))
	var pages int64
	if c.session.QueryRowContext(ctx, c.facts.on(sqlPages)).Scan(&pages) == nil {
		text += fmt.Sprintf(", %s MB with indexes", purge.Grouped(pages*8/1024))
	}
	return purge.Size.Found(text)
}

// jobs tells who else deletes from the table.
func (c *conn) jobs(ctx context.Context) purge.Finding {
	jobs, ends, err := c.agentJobs(ctx)
	unseen := ""
	if err != nil {
		jobs = nil
		unseen = fmt.Sprintf("the login may not see SQL Server Agent's jobs; as an administrator, look for those that delete from %s", c.table)
		if c.table.Name == purge.ClientAccessTokens.Name {
			unseen += ": infra/sqlserver/stop-old-job.sql finds and stops them"
		}
	}
	return purge.Cleaners(c.table, jobs, ends, unseen, "no job of SQL Server Agent deletes rows")
}

// agentJobs returns the jobs of SQL Server Agent that delete from the table, and the
// statements that end them.
func (c *conn) agentJobs(ctx context.Context) (jobs, ends []string, err error) {
	read, err := c.session.QueryContext(ctx, sqlJobs, sql.Named("pattern", cleans(c.table)))
	if err != nil {
		return nil, nil, err
	}
	defer read.Close()
	for read.Next() {
		var name string
		if err := read.Scan(&name); err != nil {
			return nil, nil, err
		}
		jobs = append(jobs, "SQL Server Agent job "+name)
		ends = append(ends, fmt.Sprintf("EXEC msdb.dbo.sp_update_job @job_name = N'%s', @enabled = 0;", strings.ReplaceAll(name, "'", "''")))
	}
	return jobs, ends, read.Err()
}

// cleans returns what the text of a job is like that deletes from the table. A word as
// common as the Admin API's for its table counts together with its schema alone.
func cleans(t purge.Table) string {
	name := t.Relation
	if t.Name == purge.AdminTokens.Name {
		name = t.String()
	}
	return fmt.Sprintf("%%DELETE%%%s%%", name)
}

func quoteName(name string) string { return "[" + strings.ReplaceAll(name, "]", "]]") + "]" }
