package edfi

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/pgserver"
)

var server *pgserver.Server

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	server, err = pgserver.Start(context.Background(), pgserver.Options{Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		return 1, err
	}
	defer server.Stop() //nolint:errcheck // the tests have ended
	return m.Run(), nil
}

// database makes a database with Ed-Fi's tables, gone when the test ends.
func database(t *testing.T) *pgx.Conn {
	t.Helper()
	name := fmt.Sprintf(`EdFi_Admin "%d"`, time.Now().UnixNano()) // any name will do
	if err := CreateDatabase(t.Context(), server.URL("postgres"), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		conn, err := pgx.Connect(ctx, server.URL("postgres"))
		if err != nil {
			return
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	config, err := pgx.ParseConfig(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	config.Database = name
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if err := CreateSchema(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestFillWritesWhatWasAskedForInEveryTimeZone(t *testing.T) {
	for _, zone := range []string{"UTC", "America/Chicago", "Asia/Tokyo"} {
		t.Run(zone, func(t *testing.T) {
			conn := database(t)
			if _, err := conn.Exec(t.Context(), "SET timezone TO '"+zone+"'"); err != nil {
				t.Fatal(err)
			}
			var told []int
			const want = chunk + 1
			err := Fill(t.Context(), conn, FillOptions{Expired: want, Live: 300}, func(done, total int) {
				if told = append(told, done); total != want+300 {
					t.Errorf("told of %d rows in all", total)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			expired, live, err := Counts(t.Context(), conn)
			if err != nil || expired != want || live != 300 {
				t.Errorf("got %d expired, %d live, %v", expired, live, err)
			}
			if len(told) != 3 || told[2] != want+300 {
				t.Errorf("told of %v rows", told)
			}
		})
	}
}

func TestTokensLieInTheOrderOfTheirExpiration(t *testing.T) {
	conn := database(t)
	if err := Fill(t.Context(), conn, FillOptions{Expired: 1000, Live: 100, ExpiredFrom: time.Hour}, nil); err != nil {
		t.Fatal(err)
	}
	var disorder, without, with int
	var oldest, youngest float64 // seconds from now
	err := conn.QueryRow(t.Context(), `
		SELECT count(*) FILTER (WHERE expiration <= before), count(*) FILTER (WHERE scope IS NULL), count(scope),
		       extract(epoch FROM min(expiration) - now() AT TIME ZONE 'utc')::float8,
		       extract(epoch FROM max(expiration) - now() AT TIME ZONE 'utc')::float8
		FROM (SELECT expiration, scope, lag(expiration) OVER (ORDER BY ctid) AS before
		      FROM dbo.clientaccesstokens) AS t`).Scan(&disorder, &without, &with, &oldest, &youngest)
	if err != nil {
		t.Fatal(err)
	}
	if disorder != 0 || without == 0 || with == 0 {
		t.Errorf("%d rows out of order, %d without scope, %d with", disorder, without, with)
	}
	if oldest < -3660 || oldest > -3590 || youngest < 1740 || youngest > 1800 {
		t.Errorf("expirations from %f to %f seconds", oldest, youngest)
	}
}

func TestTokensCanExpireAtOneInstant(t *testing.T) {
	conn := database(t)
	if err := Fill(t.Context(), conn, FillOptions{Expired: 1000, SameExpiration: true}, nil); err != nil {
		t.Fatal(err)
	}
	var rows, instants int
	err := conn.QueryRow(t.Context(), "SELECT count(*), count(DISTINCT expiration) FROM dbo.clientaccesstokens").Scan(&rows, &instants)
	if err != nil || rows != 1000 || instants != 1 {
		t.Errorf("got %d rows at %d instants, %v", rows, instants, err)
	}
}
