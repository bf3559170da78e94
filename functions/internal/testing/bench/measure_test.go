package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// newEmptyStage has a table without an expired row.
func newEmptyStage(t *testing.T) *stage {
	t.Helper()
	s, err := newStage(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.copy(t.Context(), table{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// during is a cleaner that runs sql.
func during(sql string) cleaner { return statement(sql, 0) }

func TestAStallCountsForAllThatWaitBehindIt(t *testing.T) {
	m, err := beside(t.Context(), newEmptyStage(t), during("BEGIN; LOCK TABLE dbo.clientaccesstokens; SELECT pg_sleep(1); COMMIT"), 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	// Half of the requests that are due in a second of standing still wait for
	// about half of it or more, though so many connections can't have met it.
	if m["issue-p50-µs"] < 400_000 || m["look-up-p50-µs"] < 400_000 {
		t.Errorf("%v", m)
	}
}

func TestAnErrorOfTheAPIEndsTheBench(t *testing.T) {
	_, err := beside(t.Context(), newEmptyStage(t), during("DROP TABLE dbo.clientaccesstokens"), 100*time.Millisecond)
	if err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestTheServersProcessorTimeHoldsThatOfSessionsThatAreGone(t *testing.T) {
	s := newEmptyStage(t)
	if processorTime(os.Getpid()) == 0 {
		t.Skip("this system does not tell it")
	}
	before, err := s.account(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), s.Postgres.URL(database))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT count(*) FROM generate_series(1, 2000000)"); err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	after, err := s.account(t.Context())
	if used := after.cpu - before.cpu; err != nil || used < 50*time.Millisecond {
		t.Errorf("%s of processor time, %v", used, err)
	}
}

func TestTheLogTellsTheLongestStatementOfACleaner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(`api|LOG:  duration: 900.000 ms  execute stmt_1: DELETE FROM t
edfi-token-purge|LOG:  duration: 7.500 ms  execute stmt_2:
	DELETE FROM t
cleaner|LOG:  duration: 12.250 ms  statement: DELETE FROM t
`), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s := stage{log: log}
	for _, want := range []float64{12.25, 0} { // it is read once
		if got, err := s.longest(); err != nil || got != want {
			t.Errorf("%v ms, %v, want %v", got, err, want)
		}
	}
}
