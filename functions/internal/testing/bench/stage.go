package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

const (
	template = "template_tokens"
	database = "EdFi_Admin"
)

// stage is a server, and on it the table that is copied for every run.
type stage struct {
	rig    *rig.Rig
	admin  *pgx.Conn
	create string // statement that makes the copy
	log    *os.File
	since  time.Time // the mark, by the server's clock, as the table has it
}

// table says what the template is filled with.
type table struct {
	name          string
	expired, live int
	noIndex       bool // on expiration
	same          bool // all expire at one instant
	snapshot      bool // another session holds an old one
}

func newStage(ctx context.Context, binary string) (*stage, error) {
	r, err := rig.New(ctx, binary, pgserver.Options{
		Progress: say,
		Settings: map[string]string{
			// The log times statements of a millisecond or more, and costs those with many
			// little. The rest keeps checkpoints and autovacuum from falling into one
			// measurement and not the next.
			"log_min_duration_statement": "1ms",
			"log_parameter_max_length":   "0",
			"log_line_prefix":            "%a|%n|",
			"autovacuum":                 "off",
			"max_wal_size":               "16GB",
			"checkpoint_timeout":         "1h",
			"shared_buffers":             "512MB",
			"maintenance_work_mem":       "1GB",
		},
	})
	if err != nil {
		return nil, err
	}
	s := &stage{rig: r}
	if s.log, err = os.Open(r.Postgres.LogFile()); err != nil {
		r.Close()
		return nil, fmt.Errorf("a server of the bench's own is needed; unset DATABASE_URL: %w", err)
	}
	if s.admin, err = pgx.Connect(ctx, r.Postgres.URL("postgres")); err != nil {
		s.close()
		return nil, err
	}
	// Copying the files takes half as long, and is the only way before PostgreSQL 15.
	err = s.admin.QueryRow(ctx, `
		SELECT 'CREATE DATABASE "`+database+`" TEMPLATE `+template+`'
		    || CASE WHEN current_setting('server_version_num')::int >= 150000 THEN ' STRATEGY file_copy' ELSE '' END`).Scan(&s.create)
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stage) close() {
	s.log.Close() //nolint:errcheck // it was read
	s.rig.Close()
}

// fill makes the template. Its live rows begin to expire five minutes later.
func (s *stage) fill(ctx context.Context, t table) error {
	s.empty()
	say(strings.TrimSpace("filling a table with " + thousands(t.expired+t.live) + " rows; " + t.name))
	conn, err := s.rig.CreateDatabase(ctx, template)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	// Keys and index come after the rows, which takes a fifth of the time.
	const index = "CREATE INDEX ix_clientaccesstokens_expiration ON dbo.clientaccesstokens (expiration DESC)"
	after := []string{"ALTER TABLE dbo.clientaccesstokens ADD CONSTRAINT clientaccesstokens_pk PRIMARY KEY (id)", index, "VACUUM ANALYZE"}
	if t.noIndex {
		after = []string{after[0], after[2]}
	}
	for _, sql := range []string{
		"SET session_replication_role = replica; SET synchronous_commit = off",
		"ALTER TABLE dbo.clientaccesstokens DROP CONSTRAINT clientaccesstokens_pk",
		"DROP INDEX dbo.ix_clientaccesstokens_expiration",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if err := edfi.Fill(ctx, conn, edfi.FillOptions{Expired: t.expired, Live: t.live, SameExpiration: t.same}, nil); err != nil {
		return err
	}
	for _, sql := range after {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// empty drops the template, if there is one.
func (s *stage) empty() {
	s.admin.Exec(context.Background(), "DROP DATABASE IF EXISTS "+template+" WITH (FORCE)") //nolint:errcheck // the next fill fails on it
}

// copy makes a fresh database out of the template, with nothing left to write.
func (s *stage) copy(ctx context.Context) error {
	for _, sql := range []string{`DROP DATABASE IF EXISTS "` + database + `" WITH (FORCE)`, s.create, "CHECKPOINT"} {
		if _, err := s.admin.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// look makes sure that nothing is left that had expired at the mark, and answers
// how often a page of the table or its indexes was looked at.
func (s *stage) look(ctx context.Context) (pages float64, err error) {
	// Sessions tell what they read when they end.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var sessions int
		err := s.admin.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name <> 'snapshot'", database).Scan(&sessions)
		if err != nil {
			return 0, err
		}
		if sessions == 0 || time.Now().After(deadline) {
			break
		}
	}
	conn, err := pgx.Connect(ctx, s.rig.Postgres.URL(database))
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	err = conn.QueryRow(ctx, `
		SELECT heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0)
		FROM pg_statio_user_tables WHERE relname = 'clientaccesstokens'`).Scan(&pages)
	if err != nil {
		return 0, err
	}
	left := 0
	err = conn.QueryRow(ctx, "SELECT count(*) FROM dbo.clientaccesstokens WHERE expiration <= $1", s.since).Scan(&left)
	if err == nil && left != 0 {
		err = fmt.Errorf("%d expired rows are left", left)
	}
	return pages, err
}

// snapshot opens a session that keeps dead rows from being forgotten.
func (s *stage) snapshot(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, s.rig.Postgres.URL(database)+"&application_name=snapshot")
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM dbo.apiclients")
	return conn, err
}

var logged = regexp.MustCompile(`^(?:edfi-token-purge|cleaner)\|([0-9.]+)\|LOG:  duration: ([0-9.]+) ms  (\w*)`)

// mark has statements read from here on, and what has expired until now gone.
func (s *stage) mark(ctx context.Context) error {
	if _, err := s.log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	return s.admin.QueryRow(ctx, "SELECT now() AT TIME ZONE 'utc'").Scan(&s.since)
}

// statements answers the longest statement since the mark in milliseconds, of
// those that clean, and when the first DELETE among them ended.
func (s *stage) statements() (longest float64, first time.Time, err error) {
	lines := bufio.NewScanner(s.log)
	lines.Buffer(nil, 1<<20)
	ended, ran := 0.0, false
	for lines.Scan() {
		if m := logged.FindStringSubmatch(lines.Text()); m != nil {
			ms, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				return 0, first, err
			}
			longest = max(longest, ms)
			if ended, err = strconv.ParseFloat(m[1], 64); err != nil {
				return 0, first, err
			}
			ran = m[3] == "execute" || m[3] == "statement" // and is not only being prepared
		}
		if first.IsZero() && ran && strings.Contains(lines.Text(), "DELETE FROM") {
			first = time.UnixMicro(int64(ended * 1e6))
		}
	}
	return longest, first, lines.Err()
}
