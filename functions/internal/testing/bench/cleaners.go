package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/rig"
)

// cleaner empties the database of what has expired.
type cleaner struct {
	name string
	run  func(context.Context, *stage) (outcome, error)
}

// outcome is what a run of a cleaner took.
type outcome struct {
	began   time.Time // to bother the server
	seconds float64
	memory  float64 // most that the function's process had, MB; 0 is unknown
}

const expired = "expiration <= now() AT TIME ZONE 'utc'"

// plainDelete is what all are measured against, and what Ed-Fi's API runs.
var plainDelete = cleaner{"plain DELETE", func(ctx context.Context, s *stage) (outcome, error) {
	return statement(ctx, s, "DELETE FROM dbo.clientaccesstokens WHERE "+expired, 0)
}}

// peers are the batches of other cleaners; BENCHMARKS.md says whose. All are of
// 5,000 rows, as this purge's.
var peers = []cleaner{
	batches("id IN, any order", "id IN (SELECT id FROM dbo.clientaccesstokens WHERE "+expired+" LIMIT 5000)"),
	batches("id IN, ordered by id", "id IN (SELECT id FROM dbo.clientaccesstokens WHERE "+expired+" ORDER BY id LIMIT 5000)"),
	batches("id IN, oldest first", "id IN (SELECT id FROM dbo.clientaccesstokens WHERE "+expired+" ORDER BY expiration LIMIT 5000)"),
	{"id by id, after the last", walk},
	batches("ctid = ANY, any order", "ctid = ANY (ARRAY(SELECT ctid FROM dbo.clientaccesstokens WHERE "+expired+" LIMIT 5000))"),
	batches("ctid = ANY, oldest first", "ctid = ANY (ARRAY(SELECT ctid FROM dbo.clientaccesstokens WHERE "+expired+" ORDER BY expiration LIMIT 5000))"),
}

const peerBatch = 5000

func batches(name, where string) cleaner {
	return cleaner{name, func(ctx context.Context, s *stage) (outcome, error) {
		return statement(ctx, s, "DELETE FROM dbo.clientaccesstokens WHERE "+where, peerBatch)
	}}
}

// statement runs sql until it deletes less than a batch; once if that is 0.
func statement(ctx context.Context, s *stage, sql string, batch int64) (outcome, error) {
	return timed(ctx, s, func(conn *pgx.Conn) error {
		for {
			tag, err := conn.Exec(ctx, sql)
			if err != nil || tag.RowsAffected() < batch || batch == 0 {
				return err
			}
		}
	})
}

// walk reads the ids of each batch, above those of the last, and deletes them.
func walk(ctx context.Context, s *stage) (outcome, error) {
	return timed(ctx, s, func(conn *pgx.Conn) error {
		for last := "00000000-0000-0000-0000-000000000000"; ; {
			read, _ := conn.Query(ctx, "SELECT id::text FROM dbo.clientaccesstokens WHERE "+expired+" AND id > $1::uuid ORDER BY id LIMIT 5000", last) // the error comes below
			ids, err := pgx.CollectRows(read, pgx.RowTo[string])
			if err != nil || len(ids) == 0 {
				return err
			}
			if _, err := conn.Exec(ctx, "DELETE FROM dbo.clientaccesstokens WHERE id = ANY ($1::uuid[])", ids); err != nil || len(ids) < peerBatch {
				return err
			}
			last = ids[len(ids)-1]
		}
	})
}

// timed measures what do takes, without connecting.
func timed(ctx context.Context, s *stage, do func(*pgx.Conn) error) (outcome, error) {
	began := time.Now()
	conn, err := pgx.Connect(ctx, s.rig.Postgres.URL(database)+"&application_name=cleaner")
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	start := time.Now()
	err = do(conn)
	return outcome{began: began, seconds: time.Since(start).Seconds()}, err
}

// purgeWith is this purge over so many connections; 0 is its default.
func purgeWith(connections int, env ...string) cleaner {
	c := cleaner{name: "purge"}
	if connections > 0 {
		c.name = "purge, CONCURRENCY=" + strconv.Itoa(connections)
		env = append(env, "CONCURRENCY="+strconv.Itoa(connections))
	}
	c.run = func(ctx context.Context, s *stage) (outcome, error) {
		f, err := start(ctx, s, env...)
		if err != nil {
			return outcome{}, err
		}
		defer f.Stop()
		return invoke(ctx, f)
	}
	return c
}

// purgeOf is this purge of so many rows, and no more, by a function that is warm:
// it does not start on the server's machine where it runs on Lambda.
func purgeOf(rows int, env ...string) cleaner {
	return cleaner{strings.Join(append([]string{"purge"}, env...), ", "), func(ctx context.Context, s *stage) (outcome, error) {
		f, err := start(ctx, s, append(env, fmt.Sprintf("MAX_ROWS=%d", rows))...)
		if err != nil {
			return outcome{}, err
		}
		defer f.Stop()
		if reply, _, err := f.Invoke(ctx, `{"action": "check"}`, time.Minute); err != nil || reply.Error != nil {
			return outcome{}, fmt.Errorf("the function answered %.500s: %w", reply.Payload, err)
		}
		return invoke(ctx, f)
	}}
}

// start starts a function for the database.
func start(ctx context.Context, s *stage, env ...string) (*rig.Function, error) {
	return s.rig.Start(ctx, append([]string{"DATABASES=" + database}, env...)...)
}

// invoke has a function purge the database. The time is the one in its result,
// from connecting to the last look.
func invoke(ctx context.Context, f *rig.Function) (outcome, error) {
	began := time.Now()
	reply, _, err := f.Invoke(ctx, "{}", 15*time.Minute)
	if err != nil {
		return outcome{}, err
	}
	var result struct {
		Databases []struct {
			StopReason string
			DurationMs float64
		}
	}
	if reply.Error != nil || json.Unmarshal(reply.Payload, &result) != nil || len(result.Databases) != 1 || !slices.Contains([]string{"drained", "max-rows"}, result.Databases[0].StopReason) {
		return outcome{}, fmt.Errorf("the function answered %.500s", reply.Payload)
	}
	return outcome{began, result.Databases[0].DurationMs / 1000, float64(highWater(f.PID())) / 1024}, nil
}

// highWater answers the most memory that a process had, in kB.
func highWater(pid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // Linux alone has it
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, _ := strconv.Atoi(strings.Fields(value)[0])
			return kB
		}
	}
	return 0
}
