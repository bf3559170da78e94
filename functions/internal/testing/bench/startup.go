package main

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/relay"
)

// startUp measures so many cold starts, and the binary.
func startUp(ctx context.Context, s *stage, r *report, starts int, deployed string) error {
	say("cold starts")
	if err := s.fill(ctx, table{expired: 50_000}); err != nil {
		return err
	}
	defer s.empty()
	purge := purgeWith(0)
	var polls, deletes, idle []float64
	for range starts {
		poll, err := firstPoll(ctx, s)
		if err != nil {
			return err
		}
		if err := s.copy(ctx); err != nil {
			return err
		}
		if err := s.mark(ctx); err != nil {
			return err
		}
		start := time.Now()
		if _, err := purge.run(ctx, s); err != nil {
			return err
		}
		_, first, err := s.statements()
		if err != nil {
			return err
		}
		if first.IsZero() {
			return errors.New("the log has no DELETE")
		}
		nothing, err := purge.run(ctx, s) // nothing is left
		if err != nil {
			return err
		}
		polls = append(polls, poll.Seconds()*1000)
		deletes = append(deletes, first.Sub(start).Seconds()*1000)
		idle = append(idle, nothing.seconds*1000)
	}
	rows := [][]string{
		{"process start to the first poll, ms", spread(polls, decimal)},
		{"process start to the first deleted rows, ms", spread(deletes, decimal)},
		{"a run that finds nothing, connecting included, ms", spread(idle, decimal)},
	}
	if deployed != "" {
		size, zipped, err := sizes(deployed)
		if err != nil {
			return err
		}
		rows = append(rows, []string{"binary for Lambda (arm64), MB", decimal(size / 1e6)}, []string{"the same in a zip file, MB", decimal(zipped / 1e6)})
	}
	r.heading("Start-up")
	r.table([]string{"cold start", "median (least to most)"}, rows)
	return nil
}

// firstPoll answers how long a process takes until it asks Lambda for work.
func firstPoll(ctx context.Context, s *stage) (time.Duration, error) {
	polled, done := make(chan time.Time, 1), make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/invocation/next") {
			select {
			case polled <- time.Now():
			default:
			}
		}
		<-done // Lambda has no work
	}))
	defer api.Close()
	defer close(done)
	start := time.Now()
	f, err := s.rig.Start(ctx, "AWS_LAMBDA_RUNTIME_API="+api.Listener.Addr().String())
	if err != nil {
		return 0, err
	}
	defer f.Stop()
	select {
	case at := <-polled:
		return at.Sub(start), nil
	case <-time.After(10 * time.Second):
		return 0, errors.New("the function did not poll")
	}
}

// sizes answers the bytes of a file, and of a zip file with it.
func sizes(path string) (plain, zipped float64, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	var count counter
	archive := zip.NewWriter(&count)
	if w, err := archive.Create("bootstrap"); err != nil {
		return 0, 0, err
	} else if _, err := w.Write(content); err != nil {
		return 0, 0, err
	}
	return float64(len(content)), float64(count), archive.Close()
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// makeDatabases makes every step-th of so many databases, from first on.
func makeDatabases(ctx context.Context, s *stage, first, databases, step int) error {
	conn, err := pgx.Connect(ctx, s.rig.Postgres.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	for i := first; i < databases; i += step {
		if _, err := conn.Exec(ctx, fmt.Sprintf("CREATE DATABASE admin_%d TEMPLATE "+template, i)); err != nil {
			return err
		}
	}
	return nil
}

// many measures the run over many databases that finds nothing in any.
func many(ctx context.Context, s *stage, r *report, databases int) error {
	say(fmt.Sprintf("making %s databases", thousands(databases)))
	if err := s.fill(ctx, table{}); err != nil {
		return err
	}
	const makers = 4
	made := make(chan error, makers)
	for maker := range makers {
		go func() { made <- makeDatabases(ctx, s, maker, databases, makers) }()
	}
	var errs []error
	for range makers {
		errs = append(errs, <-made)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	between, err := relay.New(net.JoinHostPort(s.rig.Postgres.Host, strconv.Itoa(int(s.rig.Postgres.Port))))
	if err != nil {
		return err
	}
	defer between.Close()
	f, err := s.rig.Start(ctx, "DATABASES=admin_*", fmt.Sprintf("DB_PORT=%d", between.Port()))
	if err != nil {
		return err
	}
	defer f.Stop()
	reply, _, err := f.Invoke(ctx, "{}", 15*time.Minute)
	if err != nil {
		return err
	}
	var result struct {
		Status     string
		DurationMs float64
		Databases  []json.RawMessage
	}
	if reply.Error != nil || json.Unmarshal(reply.Payload, &result) != nil || result.Status != "complete" || len(result.Databases) != databases {
		return fmt.Errorf("the function answered %.500s", reply.Payload)
	}
	connections, trips := between.Counts()
	r.line(fmt.Sprintf("A run over %s databases that finds nothing in any, four at a time, takes %.1f s, %.1f round trips for each, log-in included, and %.0f MB of memory.",
		thousands(databases), result.DurationMs/1000, float64(trips)/float64(connections), float64(highWater(f.PID()))/1024))
	return nil
}
