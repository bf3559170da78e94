package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/relay"
)

const (
	// apiRate is how many requests a second the API serves: half of them issue a
	// token, half look one up.
	apiRate = 400
	// apiConnections is the API's pool.
	apiConnections = 16
)

// BenchmarkAPI measures the API alone, beside a purge, and beside what does not
// spare it. The time of each request counts from when it was due, so that no
// stall hides those that wait behind it.
func BenchmarkAPI(b *testing.B) {
	t, idle := rows(4_000_000), 6*time.Second
	if testing.Short() {
		idle = time.Second
	}
	entries := []entry{
		{"idle", t, func(context.Context, *stage) (metrics, time.Duration, error) { time.Sleep(idle); return nil, 0, nil }},
		{"plain", t, plain},
		{"purge", t, purgeOf(t.expired / 250)},
		{"purge-unthrottled", t, purgeOf(t.expired/2, "BATCH_TARGET=0s")},
	}
	report(b, entries, func(i int) (metrics, error) {
		if err := shared.copy(b.Context(), t); err != nil {
			return nil, err
		}
		// Who writes a log has its disk sync for others.
		if err := exec(b.Context(), shared.admin, `ALTER DATABASE "`+database+`" SET log_min_duration_statement = -1`); err != nil {
			return nil, err
		}
		return beside(b.Context(), shared, entries[i].clean, idle/6)
	}, func(all []metrics) {
		for _, m := range all {
			for _, name := range []string{"issue", "look-up"} {
				m[name+"-p99-%-of-idle"] = 100 * m[name+"-p99-µs"] / all[0][name+"-p99-µs"]
			}
		}
	})
}

// purgeOf is this purge of so many rows by a function that is warm: it does not
// start on the server's machine where it runs on Lambda.
func purgeOf(rows int, env ...string) cleaner {
	return func(ctx context.Context, s *stage) (metrics, time.Duration, error) {
		f, err := s.Start(ctx, append([]string{"DATABASES=" + database, fmt.Sprintf("MAX_ROWS=%d", rows)}, env...)...)
		if err != nil {
			return nil, 0, err
		}
		defer f.Stop()
		if _, err := invoke(ctx, f, `{"action": "check"}`); err != nil {
			return nil, 0, err
		}
		_, err = invoke(ctx, f, "{}")
		return nil, 0, err
	}
}

// beside plays the API while the cleaner works, and for lead before and after.
func beside(ctx context.Context, s *stage, clean cleaner, lead time.Duration) (metrics, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type request struct {
		due   time.Time
		issue bool
		took  time.Duration
	}
	queue := make(chan request, 1<<20) // nothing that is due waits for what is late
	var (
		mu     sync.Mutex
		served []request
		pool   sync.WaitGroup
	)
	for range apiConnections {
		conn, err := s.connect(ctx, "api")
		if err != nil {
			return nil, err
		}
		defer conn.Close(context.Background()) //nolint:errcheck // nothing is under way
		token := ""
		for _, issue := range []bool{true, false} { // as a pool's are, the connections are used already
			if err := ask(ctx, conn, issue, &token); err != nil {
				return nil, err
			}
		}
		pool.Go(func() {
			for r := range queue {
				if err := ask(ctx, conn, r.issue, &token); err != nil {
					cancel(err)
					return
				}
				r.took = time.Since(r.due)
				mu.Lock()
				served = append(served, r)
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	pool.Go(func() {
		defer close(queue)
		first := time.Now()
		for i := 0; ; i++ {
			r := request{due: first.Add(time.Duration(i) * time.Second / apiRate), issue: i%2 == 0}
			relay.SleepUntil(r.due)
			select {
			case <-stop:
				return
			case queue <- r:
			}
		}
	})
	time.Sleep(lead)
	began := time.Now()
	_, _, err := clean(ctx, s)
	ended := time.Now()
	time.Sleep(lead)
	close(stop)
	pool.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	m := metrics{}
	for name, issue := range map[string]bool{"issue": true, "look-up": false} {
		var µs []float64
		for _, r := range served {
			if r.issue == issue && r.due.After(began) && r.due.Before(ended) {
				µs = append(µs, r.took.Seconds()*1e6)
			}
		}
		slices.Sort(µs)
		if len(µs) == 0 {
			return nil, fmt.Errorf("no %s in %s", name, ended.Sub(began))
		}
		m[name+"-p50-µs"], m[name+"-p99-µs"], m[name+"-worst-µs"] = µs[len(µs)/2], µs[len(µs)*99/100], µs[len(µs)-1]
	}
	return m, nil
}

// ask has the API store a token, or look it up as it does for each of its own
// requests.
func ask(ctx context.Context, conn *pgx.Conn, issue bool, token *string) error {
	if issue {
		return conn.QueryRow(ctx, `
			INSERT INTO dbo.clientaccesstokens (id, expiration, scope, apiclient_apiclientid)
			VALUES (gen_random_uuid(), now() AT TIME ZONE 'utc' + interval '30 minutes', NULL, 1) RETURNING id::text`).Scan(token)
	}
	var client int
	return conn.QueryRow(ctx, `
		SELECT c.apiclientid
		FROM dbo.clientaccesstokens t JOIN dbo.apiclients c ON c.apiclientid = t.apiclient_apiclientid
		WHERE t.id = $1::uuid AND t.expiration > now() AT TIME ZONE 'utc'`, *token).Scan(&client)
}
