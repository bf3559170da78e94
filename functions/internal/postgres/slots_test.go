package postgres

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

func TestARunLeavesTheLastConnectionsOfAServerToTheAPI(t *testing.T) {
	t.Parallel()
	const databases, forAll = 8, 9
	own, s, admin := ownServer(t, pgserver.Options{Settings: map[string]string{"max_connections": fmt.Sprint(forAll + 3), "superuser_reserved_connections": "3"}})
	must(t, admin, "CREATE ROLE api LOGIN PASSWORD 'api'; CREATE ROLE purger LOGIN PASSWORD 'purger'")
	s.User, s.Password = redact.NewSecret("purger"), redact.NewSecret("purger")
	where := purge.Target{Engine: s, Tables: []purge.Table{purge.ClientAccessTokens}, Log: quiet}
	for i := range databases {
		name := fmt.Sprint("EdFi_Admin_", i)
		if err := edfi.CreateDatabase(t.Context(), own.URL("postgres"), name); err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), own.URL(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := edfi.CreateSchema(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		must(t, conn, `GRANT USAGE ON SCHEMA dbo TO purger; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO purger`)
		must(t, conn, "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), now() - n * interval '1 minute' FROM generate_series(1, 500) AS n")
		database{name: name, conn: conn, its: relations[purge.ClientAccessTokens.Name]}.Delay(t, time.Millisecond)
		conn.Close(t.Context())
		where.Databases = append(where.Databases, purge.Database{Name: name})
	}
	// The API has five of the nine, one of them the test's own, and asks for one more again
	// and again.
	config := func() *pgx.ConnConfig {
		c, err := pgx.ParseConfig(own.URL("postgres"))
		if err != nil {
			t.Error(err)
		}
		c.User, c.Password = "api", "api"
		return c
	}
	for range 4 {
		conn, err := pgx.ConnectConfig(t.Context(), config())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
	}
	done := make(chan purge.Result, 1)
	go func() {
		p := purge.Policy{Action: purge.Purge, BatchSize: 20, Parallel: databases, Concurrency: 4}
		done <- purge.Run(t.Context(), where, p, func(purge.DatabaseResult) {})
	}()
	for asked := 0; ; asked++ {
		select {
		case r := <-done:
			if r.Status != purge.Complete || r.DeletedRows != databases*500 {
				t.Errorf("%+v", r)
			}
			if asked < 10 {
				t.Errorf("the API asked %d times only", asked)
			}
			return
		default:
		}
		conn, err := pgx.ConnectConfig(t.Context(), config())
		if err != nil {
			t.Fatalf("the API gets no connection: %v", err)
		}
		conn.Close(t.Context())
		time.Sleep(10 * time.Millisecond)
	}
}
