package sqlserver

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"edfi-token-purge/functions/internal/purge"
)

// oldestVersion is the oldest that this package supports, SQL Server 2017.
const oldestVersion = 14

// checked is what sqlCheck returns.
type checked struct {
	product, version, edition string
	snapshot                  bool // reads wait for no writes
	offset                    int  // minutes of the server's clock from UTC
	triggers, references      string
	rows                      int64
}

// Check implements [purge.Conn].
func (c *conn) Check(ctx context.Context) ([]purge.Finding, error) {
	ctx, cancel, err := c.prepare(ctx)
	if err != nil {
		return nil, c.explain("check the database", err)
	}
	defer cancel()
	var r checked
	err = c.session.QueryRowContext(ctx, sqlCheck).Scan(&r.product, &r.version, &r.edition, &r.snapshot, &r.offset, &r.triggers, &r.references, &r.rows)
	if err != nil {
		return nil, c.explain("check the database", late(ctx, err))
	}
	found := []purge.Finding{purge.Encryption(c.secured), r.supported()}
	found = append(found, c.facts.checkFindings()...)
	found = append(found, r.findings(c.database)...)
	found = append(found, c.size(ctx, r.rows), c.jobs(ctx))
	return found, c.facts.mayDelete()
}

// supported tells the server's version. Babelfish's says nothing of what it can do.
func (r checked) supported() purge.Finding {
	text := fmt.Sprintf("%s %s, %s", r.product, r.version, r.edition)
	major, _, _ := strings.Cut(r.version, ".")
	if n, _ := strconv.Atoi(major); n < oldestVersion && r.product != babelfish {
		return purge.Version.At(purge.LevelWarning, text+", is older than 2017 (14), the first version that this is for")
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
	if f.indexed {
		found = append(found, purge.ExpirationIndex.Found("an index finds rows by their expiration"))
	}
	return found
}

// findings are what may get in the way of a purge, or a purge in the way of others.
func (r checked) findings(database string) []purge.Finding {
	found := []purge.Finding{purge.TimeZone.Found(fmt.Sprintf("the server's clock is %+d minutes from UTC; tokens are kept and compared in UTC", r.offset))}
	if r.triggers != "" {
		found = append(found, purge.DeleteTrigger.Found("triggers on the table may run for each delete, which costs time and may keep rows; without them: "+r.triggers))
	}
	if r.references != "" {
		found = append(found, purge.Referenced.Found("foreign keys lead to the table, which Ed-Fi has none of; they can refuse a delete; without them: "+r.references))
	}
	if r.snapshot {
		return append(found, purge.RCSI.Found("READ_COMMITTED_SNAPSHOT is on: the API's reads wait for no delete"))
	}
	return append(found, purge.RCSIOff.Found("the API's reads wait for each batch's deletes: ALTER DATABASE "+quoteName(database)+" SET READ_COMMITTED_SNAPSHOT ON, at a quiet time"))
}

// size tells how large the table is. Not every server tells its pages.
func (c *conn) size(ctx context.Context, rows int64) purge.Finding {
	text := fmt.Sprintf("about %d rows", rows)
	var pages int64
	if c.session.QueryRowContext(ctx, sqlPages).Scan(&pages) == nil {
		text += fmt.Sprintf(", %d MB with indexes", pages*8/1024)
	}
	return purge.Size.Found(text)
}

// jobs tells who else deletes tokens.
func (c *conn) jobs(ctx context.Context) purge.Finding {
	unseen := purge.OtherCleanerUnseen.Found("the login may not see SQL Server Agent's jobs; as an administrator, infra/sqlserver/stop-old-job.sql finds and stops those that delete tokens")
	read, err := c.session.QueryContext(ctx, sqlJobs)
	if err != nil {
		return unseen
	}
	defer read.Close()
	var jobs []string
	for read.Next() {
		var name string
		if read.Scan(&name) != nil {
			return unseen
		}
		jobs = append(jobs, "SQL Server Agent job "+name)
	}
	switch {
	case read.Err() != nil:
		return unseen
	case jobs != nil:
		return purge.OtherCleaner.Found("tokens are also deleted by " + strings.Join(jobs, ", ") + "; infra/sqlserver/stop-old-job.sql stops that")
	default:
		return purge.NoOtherCleaner.Found("no job of SQL Server Agent deletes tokens")
	}
}

func quoteName(name string) string { return "[" + strings.ReplaceAll(name, "]", "]]") + "]" }
