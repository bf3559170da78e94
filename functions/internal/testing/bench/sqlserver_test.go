package bench

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/edfi"
)

const (
	sqlServerSecret = "edfi/sqlserver"
	// fillRows is how many rows one INSERT writes.
	fillRows = 10_000
)

// tsql is a cleaner on a T-SQL server, and how long it took.
type tsql func(ctx context.Context, db *sql.DB) (time.Duration, error)

// BenchmarkSQLServer compares this purge with a plain DELETE and with loops of DELETE
// TOP (n) on the server of TEST_SQLSERVER_URL. A server that only speaks T-SQL is
// named in the benchmark's own name: its numbers are none of SQL Server's.
func BenchmarkSQLServer(b *testing.B) {
	address, err := edfi.SQLServer()
	if err != nil {
		b.Fatal(err)
	}
	if address == nil {
		b.Skip("TEST_SQLSERVER_URL is not set")
	}
	shared.Secrets.Put(sqlServerSecret, sqlServerLogin(address))
	n := size(200_000)
	name := fmt.Sprintf("EdFi_Bench_%x", time.Now().UnixMilli())
	cleaners := []struct {
		name  string
		clean tsql
	}{
		{"plain", deleteTop(0)},
		{"top-1000", deleteTop(1000)},
		{"top-4000", deleteTop(4000)},
		{"purge", purgeSQLServer(name)},
		{"purge-2conns", purgeSQLServer(name, "CONCURRENCY=2")},
	}
	var entries []entry
	for _, c := range cleaners {
		entries = append(entries, entry{name: c.name})
	}
	b.Run("on="+product(b, address), func(b *testing.B) {
		report(b, entries, func(i int) (metrics, error) {
			return measureSQLServer(b.Context(), address, name, n, cleaners[i].clean)
		}, func(all []metrics) {
			for _, m := range all {
				m["rate-%-of-plain"] = 100 * m["rows/s"] / all[0]["rows/s"]
			}
		})
	})
}

// sqlServerLogin returns the secret as RDS would write it.
func sqlServerLogin(address *url.URL) string {
	password, _ := address.User.Password()
	port, _ := strconv.Atoi(cmp.Or(address.Port(), "1433"))
	text, _ := json.Marshal(map[string]any{ // strings and a number
		"engine": "sqlserver-se", "host": address.Hostname(), "port": port,
		"username": address.User.Username(), "password": password,
	})
	return string(text)
}

// product names the server.
func product(b *testing.B, address *url.URL) string {
	master, err := edfi.OpenSQLServer(address, "master")
	if err != nil {
		b.Fatal(err)
	}
	defer master.Close()
	var version string
	if err := master.QueryRow("SELECT @@VERSION").Scan(&version); err != nil {
		b.Fatal(err)
	}
	if strings.HasPrefix(version, "Babelfish") {
		return "Babelfish-a-substitute"
	}
	first, _, _ := strings.Cut(version, "(")
	return strings.ReplaceAll(strings.TrimSpace(first), " ", "-")
}

// measureSQLServer has a cleaner empty a fresh table of so many expired rows, beside a
// hundredth as many live ones.
func measureSQLServer(ctx context.Context, address *url.URL, name string, n int, clean tsql) (metrics, error) {
	db, err := edfi.CreateSQLServerDatabase(ctx, address, name)
	if err != nil {
		return nil, err
	}
	defer func() {
		db.Close()                                                            //nolint:errcheck // it goes with the database
		edfi.DropSQLServerDatabase(context.WithoutCancel(ctx), address, name) //nolint:errcheck // CREATE would say
	}()
	for _, part := range []struct{ first, last, second int }{{0, n, -1}, {0, n / 100, 1}} {
		for from := part.first; from < part.last; from += fillRows {
			if _, err := db.ExecContext(ctx, fillSQLServer, sql.Named("from", from), sql.Named("rows", min(fillRows, part.last-from)), sql.Named("second", part.second)); err != nil {
				return nil, err
			}
		}
	}
	took, err := clean(ctx, db)
	if err != nil {
		return nil, err
	}
	var left int
	if err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM dbo.ClientAccessTokens").Scan(&left); err != nil || left != n/100 {
		return nil, fmt.Errorf("%d rows are left, not %d: %w", left, n/100, err)
	}
	return metrics{"rows/s": float64(n) / took.Seconds()}, nil
}

const fillSQLServer = `
WITH ten AS (SELECT n FROM (VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)) AS t (n)),
     number AS (SELECT a.n + 10 * b.n + 100 * c.n + 1000 * d.n AS n FROM ten AS a, ten AS b, ten AS c, ten AS d)
INSERT INTO dbo.ClientAccessTokens (Id, Expiration)
SELECT NEWID(), DATEADD(second, @second * (@from + n + 600), GETUTCDATE()) FROM number WHERE n < @rows`

// deleteTop deletes batches of n rows until one has fewer; all in one statement if n is
// 0.
func deleteTop(n int64) tsql {
	statement := "DELETE FROM dbo.ClientAccessTokens WHERE Expiration <= GETUTCDATE()"
	if n > 0 {
		statement = strings.Replace(statement, "DELETE", fmt.Sprintf("DELETE TOP (%d)", n), 1)
	}
	return func(ctx context.Context, db *sql.DB) (time.Duration, error) {
		start := time.Now()
		for {
			done, err := db.ExecContext(ctx, statement)
			if err != nil {
				return 0, err
			}
			if rows, err := done.RowsAffected(); err != nil || rows < n || n == 0 {
				return time.Since(start), err
			}
		}
	}
}

// purgeSQLServer is this purge.
func purgeSQLServer(name string, env ...string) tsql {
	return func(ctx context.Context, _ *sql.DB) (time.Duration, error) {
		f, err := shared.Start(ctx, append([]string{"SECRET_ID=" + sqlServerSecret, "DB_TLS=disable", "DATABASES=" + name}, env...)...)
		if err != nil {
			return 0, err
		}
		defer f.Stop()
		result, err := invoke(ctx, f, "{}")
		return time.Duration(result.DurationMs) * time.Millisecond, err
	}
}
