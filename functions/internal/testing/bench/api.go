package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// apiRate is how many requests a second the API serves: half of them issue
	// a token, half look one up.
	apiRate = 400
	// apiConnections is the API's pool.
	apiConnections = 16
)

// phase is what the API met while something else went on, or nothing.
type phase struct {
	name    string
	seconds float64 // so long it went on
	served  []request
}

// request is one of the API's.
type request struct {
	at     float64 // when it was due, in seconds from the phase's start
	took   float64 // from then on, in ms
	insert bool
}

// besideTheAPI measures the API alone and during a purge, in turn, in a few of the
// rounds during what does not spare it as well, and answers the first round.
func besideTheAPI(ctx context.Context, s *stage, r *report, p plan, t table) ([]phase, error) {
	few, many := t.expired/125, t.expired/2 // rows that take either purge some seconds
	idle := cleaner{"idle", func(context.Context, *stage) (outcome, error) {
		begin := time.Now()
		time.Sleep(p.idle)
		return outcome{began: begin}, nil
	}}
	loud := max(1, p.apiRuns/2)
	entries := []entry{{idle, p.apiRuns}, {plainDelete, loud}, {purgeOf(few), p.apiRuns}, {purgeOf(many, "BATCH_TARGET=0s"), loud}}
	rounds := make([][]phase, p.apiRuns)
	for round := range rounds {
		rounds[round] = make([]phase, len(entries))
		for turn := range entries {
			i := (round + turn) % len(entries)
			if round >= entries[i].runs {
				continue
			}
			say(fmt.Sprintf("%s rows beside the API, round %d of %d: %s", thousands(t.expired), round+1, p.apiRuns, entries[i].name))
			err := s.copy(ctx)
			if err == nil { // who writes a log has its disk sync for others
				_, err = s.admin.Exec(ctx, `ALTER DATABASE "`+database+`" SET log_min_duration_statement = -1`)
			}
			if err == nil {
				rounds[round][i], err = serve(ctx, s, entries[i].cleaner, p.idle/6)
			}
			if err != nil {
				return nil, fmt.Errorf("the API, %s: %w", entries[i].name, err)
			}
		}
	}
	r.heading(fmt.Sprintf("The API while %s rows go", thousands(t.expired)))
	r.line(fmt.Sprintf("%d requests a second over %d connections, half of which insert a token and half look one up by its id. "+
		"The time of each counts from when it was due, so that no stall hides those that wait behind it. "+
		"The purge takes %s rows; with BATCH_TARGET=0s, where it does not throttle itself, %s.",
		apiRate, apiConnections, thousands(few), thousands(many)))
	r.latencies(rounds)
	return rounds[0], nil
}

// serve plays the API while the cleaner works, and for lead before and after.
func serve(ctx context.Context, s *stage, c cleaner, lead time.Duration) (phase, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type due struct {
		at     time.Time
		insert bool
	}
	queue := make(chan due, 1<<20) // an open loop: nothing that is due waits for what is late
	var (
		mu     sync.Mutex
		served []request
		pool   sync.WaitGroup
	)
	for range apiConnections {
		conn, err := pgx.Connect(ctx, s.rig.Postgres.URL(database)+"&application_name=api")
		if err != nil {
			return phase{}, err
		}
		defer conn.Close(context.Background()) //nolint:errcheck // nothing is under way
		token := ""
		// As a pool's are, the connections are used already.
		if err := issue(ctx, conn, &token); err != nil {
			return phase{}, err
		}
		if err := lookUp(ctx, conn, token); err != nil {
			return phase{}, err
		}
		pool.Go(func() {
			for d := range queue {
				var err error
				if d.insert {
					err = issue(ctx, conn, &token)
				} else {
					err = lookUp(ctx, conn, token)
				}
				if err != nil {
					cancel(err)
					return
				}
				took := time.Since(d.at)
				mu.Lock()
				served = append(served, request{at: float64(d.at.UnixNano()), took: took.Seconds() * 1000, insert: d.insert})
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	pool.Go(func() {
		defer close(queue)
		first := time.Now()
		for i := 0; ; i++ {
			at := first.Add(time.Duration(i) * time.Second / apiRate)
			nap(at)
			select {
			case <-stop:
				return
			case queue <- due{at, i%2 == 0}:
			}
		}
	})
	time.Sleep(lead)
	did, err := c.run(ctx, s)
	ended := time.Since(did.began) // the API feels all of it, and not only what it tells
	time.Sleep(lead)
	close(stop)
	pool.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return phase{}, cause
	}
	if err != nil {
		return phase{}, err
	}
	for i := range served {
		served[i].at = (served[i].at - float64(did.began.UnixNano())) / 1e9
	}
	slices.SortFunc(served, func(a, b request) int { return int((a.at - b.at) * 1e6) })
	return phase{c.name, ended.Seconds(), served}, nil
}

// issue stores a token as the API does.
func issue(ctx context.Context, conn *pgx.Conn, token *string) error {
	return conn.QueryRow(ctx, `
		INSERT INTO dbo.clientaccesstokens (id, expiration, scope, apiclient_apiclientid)
		VALUES (gen_random_uuid(), now() AT TIME ZONE 'utc' + interval '30 minutes', NULL, 1) RETURNING id::text`).Scan(token)
}

// lookUp finds a token as the API does for each of its own requests.
func lookUp(ctx context.Context, conn *pgx.Conn, token string) error {
	var client int
	return conn.QueryRow(ctx, `
		SELECT c.apiclientid
		FROM dbo.clientaccesstokens t JOIN dbo.apiclients c ON c.apiclientid = t.apiclient_apiclientid
		WHERE t.id = $1::uuid AND t.expiration > now() AT TIME ZONE 'utc'`, token).Scan(&client)
}

// during answers the sorted times of the requests that were due in the phase.
func (p phase) during(insert bool) []float64 {
	var ms []float64
	for _, r := range p.served {
		if r.insert == insert && r.at >= 0 && r.at <= p.seconds {
			ms = append(ms, r.took)
		}
	}
	slices.Sort(ms)
	return ms
}
