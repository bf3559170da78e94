// Package edfi creates the tables for bearer tokens of an Ed-Fi admin database and
// fills them, for tests, the demonstration and the benchmark.
package edfi

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// chunk is how many rows one INSERT writes: some tenths of a second.
	chunk = 50_000
	// clients is how many API clients the tokens belong to.
	clients = 20
	// lifetime is a token's, as Ed-Fi ships it.
	lifetime = 30 * time.Minute
	// liveFor is how long the first live token still has. No token may expire
	// between Fill and the end of a test.
	liveFor = 5 * time.Minute
)

//go:embed schema.sql
var schema string

//go:embed tables.sql
var tables string

// FillOptions says which tokens Fill writes; the zero value is none.
type FillOptions struct {
	Expired int // tokens that have expired
	Live    int // tokens that expire 5 to 30 minutes from now
	// ExpiredFrom is how long ago the oldest token expired; 0 is 24 hours. The
	// others follow evenly, up to now.
	ExpiredFrom time.Duration
	// SameExpiration has all expired tokens expire at one instant, ExpiredFrom
	// ago.
	SameExpiration bool
}

// CreateDatabase creates an empty database. The address is that of any other
// database on the server, for a login that may create one; the name is taken
// literally, mixed case included.
func CreateDatabase(ctx context.Context, adminURL, name string) error {
	conn, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the statement has ended
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// CreateSchema creates Ed-Fi's tables in an empty database, in one transaction.
func CreateSchema(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, schema); err != nil {
		return fmt.Errorf("create schema: %w", err)
	}
	return nil
}

// CreateOtherTables creates the tables of other products beside Ed-Fi's.
func CreateOtherTables(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, tables); err != nil {
		return fmt.Errorf("create the other tables: %w", err)
	}
	return nil
}

// Fill writes tokens in the order in which the API would have, so that their
// expiration follows their place in the table, and has the server take its
// statistics. Now is the server's, read once. After each chunk it tells
// progress, unless that is nil, how many rows are written. A Fill that ends in
// an error leaves what it wrote.
func Fill(ctx context.Context, conn *pgx.Conn, o FillOptions, progress func(done, total int)) error {
	if o.Expired < 0 || o.Live < 0 || o.ExpiredFrom < 0 {
		return errors.New("fill: a number is negative")
	}
	if o.ExpiredFrom == 0 {
		o.ExpiredFrom = 24 * time.Hour
	}
	if progress == nil {
		progress = func(int, int) {}
	}
	if _, err := conn.Exec(ctx, insertClients, clients); err != nil {
		return fmt.Errorf("fill clients: %w", err)
	}
	var now time.Time
	if err := conn.QueryRow(ctx, "SELECT now() AT TIME ZONE 'utc'").Scan(&now); err != nil {
		return fmt.Errorf("fill: read the clock: %w", err)
	}
	done, total := 0, o.Expired+o.Live
	write := func(rows int, from time.Time, span time.Duration) error {
		for first := 1; first <= rows; first += chunk {
			last := min(first+chunk-1, rows)
			if _, err := conn.Exec(ctx, insertTokens, from, span.Microseconds(), rows, first, last, clients); err != nil {
				return fmt.Errorf("fill tokens: %w", err)
			}
			done += last - first + 1
			progress(done, total)
		}
		return nil
	}
	span := o.ExpiredFrom
	if o.SameExpiration {
		span = 0
	}
	if err := write(o.Expired, now.Add(-o.ExpiredFrom), span); err != nil {
		return err
	}
	if err := write(o.Live, now.Add(liveFor), lifetime-liveFor); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "ANALYZE dbo.clientaccesstokens"); err != nil {
		return fmt.Errorf("fill: analyze: %w", err)
	}
	return nil
}

// FillAdminTokens writes tokens of the Admin API: so many that expired two days ago or
// less, but more than a day, which is long enough for any zone, and so many that expire
// 5 minutes to two days from now.
func FillAdminTokens(ctx context.Context, conn *pgx.Conn, expired, live int) error {
	if _, err := conn.Exec(ctx, insertAdminTokens, expired, live); err != nil {
		return fmt.Errorf("fill tokens of the Admin API: %w", err)
	}
	return nil
}

// Counts returns how many tokens have expired by the server's clock, and how
// many have not.
func Counts(ctx context.Context, conn *pgx.Conn) (expired, live int64, err error) {
	return counts(ctx, conn, "dbo.clientaccesstokens", "expiration")
}

// AdminCounts returns the same of the tokens of the Admin API.
func AdminCounts(ctx context.Context, conn *pgx.Conn) (expired, live int64, err error) {
	return counts(ctx, conn, "adminapi.tokens", "expirationdate")
}

func counts(ctx context.Context, conn *pgx.Conn, table, column string) (expired, live int64, err error) {
	err = conn.QueryRow(ctx, fmt.Sprintf(`
		SELECT count(*) FILTER (WHERE %[1]s <= now() AT TIME ZONE 'utc'),
		       count(*) FILTER (WHERE %[1]s > now() AT TIME ZONE 'utc')
		FROM %[2]s`, column, table)).Scan(&expired, &live)
	if err != nil {
		return 0, 0, fmt.Errorf("count tokens: %w", err)
	}
	return expired, live, nil
}

const insertClients = `
	INSERT INTO dbo.apiclients (apiclientid, key, name)
	SELECT i, 'client-' || i, 'Vendor ' || i FROM generate_series(1, $1::int) AS i
	ON CONFLICT DO NOTHING`

// Row i of $3 expires at $1 plus i/$3 of $2 microseconds. One in four tokens is
// limited to an education organization, whose id is its scope.
const insertTokens = `
	INSERT INTO dbo.clientaccesstokens (id, expiration, scope, apiclient_apiclientid)
	SELECT gen_random_uuid(),
	       $1::timestamp + interval '1 microsecond' * ($2::float8 * i / $3::float8),
	       CASE WHEN i % 4 = 0 THEN (255901000 + i % 300)::text END,
	       1 + i % $6::int
	FROM generate_series($4::int, $5::int) AS i
	ORDER BY i`

// The expired ones from 48 to 28 hours ago, and the live ones.
const insertAdminTokens = `
	INSERT INTO adminapi.tokens (expirationdate, payload, status, type)
	SELECT now() AT TIME ZONE 'utc' + lifetime, repeat('x', 200), 'valid', 'access_token'
	FROM (SELECT interval '20 hours' * i / $1::int - interval '48 hours' AS lifetime FROM generate_series(1, $1::int) AS i
	      UNION ALL SELECT interval '5 minutes' + interval '47 hours' * i / $2::int FROM generate_series(1, $2::int) AS i) AS token`
