package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/fakeaws"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

// site is a real server with an admin database.
type site struct {
	*pgserver.Server
	conn     *pgx.Conn
	password string // of the login; "" is that it may not log in
	expired  int    // rows that are there
}

func newSite(t *testing.T) *site {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{Own: true, Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Stop() }) //nolint:errcheck // the test has spoken
	conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if err := edfi.CreateSchema(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	s := &site{Server: server, conn: conn}
	s.exec(t, `CREATE ROLE purge; GRANT USAGE ON SCHEMA dbo TO purge; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO purge;
INSERT INTO dbo.clientaccesstokens (id, expiration) VALUES (gen_random_uuid(), now() + interval '1 day')`)
	s.rotate(t, "0")
	return s
}

func (s *site) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := s.conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// rotate gives the login another password; "" keeps it out.
func (s *site) rotate(t *testing.T, password string) {
	t.Helper()
	if s.password = password; password == "" {
		s.exec(t, "ALTER ROLE purge NOLOGIN")
		return
	}
	s.exec(t, fmt.Sprintf("ALTER ROLE purge LOGIN PASSWORD '%s'", password))
}

// expire adds so many rows that have expired.
func (s *site) expire(t *testing.T, rows int) {
	t.Helper()
	s.expired += rows
	s.exec(t, fmt.Sprintf("INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), now() - n * interval '1 hour' FROM generate_series(1, %d) AS n", rows))
}

// named is a version of the secret.
type named struct {
	at       *site
	password string
}

func (n named) text() string {
	text, _ := json.Marshal(map[string]any{"engine": "postgres", "host": n.at.Host, "port": n.at.Port, "username": "purge", "password": n.password, "dbname": "postgres"})
	return string(text)
}

func (n named) accepted() bool { return n.at != nil && n.password != "" && n.at.password == n.password }

// The same as TestTheResultNamesTheServerThatWasServed with the real function, warm, and
// two real servers: rows go where the result says, and nowhere else.
func TestRowsGoOnTheServerThatTheResultNamesAlone(t *testing.T) {
	t.Parallel()
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(secrets.Close)
	sites := []*site{newSite(t), newSite(t)}
	var current, previous, worked named
	put := func(n named) {
		current, previous = n, current
		secrets.Put("moving", n.text())
	}
	put(named{sites[0], "0"})
	f := start(t, "SECRET_ID=moving", "AWS_ENDPOINT_URL_SECRETS_MANAGER="+secrets.URL(), "AWS_MAX_ATTEMPTS=1", "CONNECT_TIMEOUT=1s")
	random := rand.New(rand.NewPCG(7, 8))
	failing := false
	seen := map[string]int{}
	for step := range 240 {
		for _, s := range sites {
			s.expire(t, 1+random.IntN(3))
		}
		next, password := current, fmt.Sprint("p", step)
		did := []string{
			"nothing", "rotated", "rotated, the server not yet", "rotated, the secret not yet", "the host moved", "the host moved, another password",
			"the server refuses", "the server lets in again", "Secrets Manager fails", "Secrets Manager is back", "Secrets Manager is back", "the server lets in again",
		}[random.IntN(12)]
		switch did {
		case "rotated":
			current.at.rotate(t, password)
			put(named{current.at, password})
		case "rotated, the server not yet":
			put(named{current.at, password})
		case "rotated, the secret not yet":
			current.at.rotate(t, password)
		case "the host moved", "the host moved, another password": // the old server goes on
			if next.at = sites[0]; current.at == sites[0] {
				next.at = sites[1]
			}
			if did != "the host moved" {
				next.password = password
			}
			next.at.rotate(t, next.password)
			put(next)
		case "the server refuses":
			current.at.rotate(t, "")
		case "the server lets in again":
			current.at.rotate(t, current.password)
		case "Secrets Manager fails":
			failing = true
			secrets.Fail([]string{"AccessDeniedException", "InternalServiceError"}[random.IntN(2)], "no")
		case "Secrets Manager is back":
			failing = false
			secrets.Recover()
		}
		var want named // whose at is nil: the run fails
		switch {
		case failing:
			if worked.accepted() {
				want = worked
			}
		case current.accepted():
			want = current
		case previous.accepted():
			want = previous
		}
		what := fmt.Sprintf("step %d, %s, Secrets Manager failing %t", step, did, failing)
		reply, lines, err := f.Invoke(t.Context(), `{}`, time.Minute)
		if err != nil {
			t.Fatalf("%s: %v\n%s", what, err, lines)
		}
		if want.at == nil {
			if reply.Error == nil {
				t.Errorf("%s: %s", what, reply.Payload)
			}
			seen["failed"]++
		} else {
			server := fmt.Sprintf("%s:%d", want.at.Host, want.at.Port)
			if r := parse(t, reply).Databases[0]; r.Server != server || r.Status != purge.Complete || r.DeletedRows != int64(want.at.expired) || found(r, "secret-unread") != failing {
				t.Errorf("%s: %+v, want %d rows of %s", what, r, want.at.expired, server)
			}
			want.at.expired, worked = 0, want
			seen[did]++
			if want == previous && want != current {
				seen["by the version before"]++
			}
		}
		for i, s := range sites {
			var expired, live int
			if err := s.conn.QueryRow(t.Context(), "SELECT count(*) FILTER (WHERE expiration <= now()), count(*) FILTER (WHERE expiration > now()) FROM dbo.clientaccesstokens").Scan(&expired, &live); err != nil {
				t.Fatal(err)
			}
			if expired != s.expired || live != 1 {
				t.Fatalf("%s: server %d has %d expired rows and %d live ones, want %d and 1", what, i, expired, live, s.expired)
			}
		}
	}
	if len(seen) != 12 {
		t.Errorf("too little happened: %v", seen)
	}
	t.Logf("%v", seen)
}
