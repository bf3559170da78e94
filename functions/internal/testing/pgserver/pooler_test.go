package pgserver

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestAPoolerPassesLogInsOn(t *testing.T) {
	p := start(t, Options{})
	pooler, err := p.StartPooler(t.Context(), map[string]string{"pool_mode": "session"}, map[string]string{p.User: p.Password})
	if errors.Is(err, ErrNoPooler) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer pooler.Stop() //nolint:errcheck // the test has spoken
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://%s:%s@%s:%d/postgres?sslmode=disable", p.User, p.Password, pooler.Host, pooler.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var pid uint32
	if err := conn.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil || pid == conn.PgConn().PID() {
		t.Errorf("%v; backend %d is the pooler's own number", err, pid)
	}
}
