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

// Check implements [purge.Table].
func (t *table) Check(ctx context.Context) ([]purge.Finding, error) {
	var (
		product, version, edition string
		triggers, references      string
		snapshot                  bool
		offset                    int // minutes
		rows                      int64
	)
	ctx, cancel, err := t.begin(ctx)
	if err != nil {
		return nil, t.explain("check the database", err)
	}
	defer cancel()
	err = t.conn.QueryRowContext(ctx, sqlCheck).Scan(&product, &version, &edition, &snapshot, &offset, &triggers, &references, &rows)
	if err != nil {
		return nil, t.explain("check the database", late(ctx, err))
	}
	found := []purge.Finding{purge.Encryption(t.secured)}
	add := func(f purge.Finding) { found = append(found, f) }

	major, _, _ := strings.Cut(version, ".")
	product = fmt.Sprintf("%s %s, %s", product, version, edition)
	if n, _ := strconv.Atoi(major); n < oldestVersion && strings.HasPrefix(product, "SQL Server") {
		add(purge.Warning("version", product+", is older than 2017 (14), the first version that this is for"))
	} else {
		add(purge.Info("version", product))
	}
	if t.examined.deletable { // else the error says so
		add(purge.Info("rights", "the login may read and delete tokens"))
	}
	if t.examined.updates == readOnly {
		add(purge.Fault("reader-endpoint", "the database is read-only: use the writer's endpoint"))
	}
	if t.indexed {
		add(purge.Info("expiration-index", "an index finds rows by their expiration"))
	}
	add(purge.Info("time-zone", fmt.Sprintf("the server's clock is %+d minutes from UTC; tokens are kept and compared in UTC", offset)))
	if triggers != "" {
		add(purge.Warning("delete-trigger", "triggers on the table may run for each delete, which costs time and may keep rows; without them: "+triggers))
	}
	if references != "" {
		add(purge.Warning("referenced", "foreign keys lead to the table, which Ed-Fi has none of; they can refuse a delete; without them: "+references))
	}
	if snapshot {
		add(purge.Info("rcsi", "READ_COMMITTED_SNAPSHOT is on: the API's reads wait for no delete"))
	} else {
		add(purge.Warning("rcsi-off", "the API's reads wait for each batch's deletes: ALTER DATABASE "+quoteName(t.database)+" SET READ_COMMITTED_SNAPSHOT ON, at a quiet time"))
	}
	size := fmt.Sprintf("about %d rows", rows)
	var pages int64 // some servers don't tell
	if t.conn.QueryRowContext(ctx, sqlPages).Scan(&pages) == nil {
		size += fmt.Sprintf(", %d MB with indexes", pages*8/1024)
	}
	add(purge.Info("size", size))
	add(t.jobs(ctx))
	return found, t.examined.mayDelete()
}

// jobs tells who else deletes tokens.
func (t *table) jobs(ctx context.Context) purge.Finding {
	unseen := purge.Info("other-cleaner-unseen", "the login may not see SQL Server Agent's jobs; as an administrator, infra/sqlserver/stop-old-job.sql finds and stops those that delete tokens")
	read, err := t.conn.QueryContext(ctx, sqlJobs)
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
		return purge.Warning("other-cleaner", "tokens are also deleted by "+strings.Join(jobs, ", ")+"; infra/sqlserver/stop-old-job.sql stops that")
	default:
		return purge.Info("no-other-cleaner", "no job of SQL Server Agent deletes tokens")
	}
}

func quoteName(name string) string { return "[" + strings.ReplaceAll(name, "]", "]]") + "]" }
