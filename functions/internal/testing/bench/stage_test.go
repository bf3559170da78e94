package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

const database = "EdFi_Admin"

// stage is a server with a template for each table, of which every run gets a copy.
type stage struct {
	*rig.Rig
	admin     *pgx.Conn
	log       *os.File
	strategy  string // of CREATE DATABASE
	templates map[string]bool
}

// table says what a template holds.
type table struct {
	name          string
	expired, live int
	noIndex       bool // on expiration
	oneInstant    bool // when all expire
	oldSnapshot   bool // another session holds one
}

func newStage(ctx context.Context, binary string) (*stage, error) {
	r, err := rig.New(ctx, binary, pgserver.Options{Own: true, Settings: map[string]string{
		// The log times statements of a millisecond or more, which costs those that
		// are quick little. The rest keeps checkpoints and autovacuum from falling into
		// one measurement and not the next.
		"log_min_duration_statement": "1ms",
		"log_parameter_max_length":   "0",
		"log_line_prefix":            "%a|",
		"autovacuum":                 "off",
		"max_wal_size":               "16GB",
		"checkpoint_timeout":         "1h",
		"shared_buffers":             "512MB",
		"maintenance_work_mem":       "1GB",
	}})
	if err != nil {
		return nil, err
	}
	s := &stage{Rig: r, templates: map[string]bool{}}
	if s.log, err = os.Open(r.Postgres.LogFile()); err == nil {
		s.admin, err = pgx.Connect(ctx, r.Postgres.URL("postgres"))
	}
	if err == nil { // copying files is quicker, and the only way before PostgreSQL 15
		err = s.admin.QueryRow(ctx, "SELECT CASE WHEN current_setting('server_version_num')::int >= 150000 THEN ' STRATEGY file_copy' ELSE '' END").Scan(&s.strategy)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return s, nil
}

func exec(ctx context.Context, conn *pgx.Conn, statements ...string) error {
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// template makes the table's, once. Its live rows begin to expire five minutes
// later, and then are left alone.
func (s *stage) template(ctx context.Context, t table) (name string, err error) {
	name = "template " + t.name
	if s.templates[name] {
		return name, nil
	}
	conn, err := s.CreateDatabase(ctx, name)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	// Keys and index come after the rows, which takes a fifth of the time.
	err = exec(ctx, conn, "SET session_replication_role = replica; SET synchronous_commit = off",
		"ALTER TABLE dbo.clientaccesstokens DROP CONSTRAINT clientaccesstokens_pk",
		"DROP INDEX dbo.ix_clientaccesstokens_expiration")
	if err == nil {
		err = edfi.Fill(ctx, conn, edfi.FillOptions{Expired: t.expired, Live: t.live, SameExpiration: t.oneInstant}, nil)
	}
	if err == nil {
		err = exec(ctx, conn, "ALTER TABLE dbo.clientaccesstokens ADD CONSTRAINT clientaccesstokens_pk PRIMARY KEY (id)")
	}
	if err == nil && !t.noIndex {
		err = exec(ctx, conn, "CREATE INDEX ix_clientaccesstokens_expiration ON dbo.clientaccesstokens (expiration DESC)")
	}
	s.templates[name] = true
	if err != nil {
		return "", err
	}
	return name, exec(ctx, conn, "VACUUM ANALYZE")
}

// copy makes a fresh database with this table, and leaves nothing to be written.
func (s *stage) copy(ctx context.Context, t table) error {
	template, err := s.template(ctx, t)
	if err != nil {
		return err
	}
	return exec(ctx, s.admin, `DROP DATABASE IF EXISTS "`+database+`" WITH (FORCE)`,
		`CREATE DATABASE "`+database+`" TEMPLATE "`+template+`"`+s.strategy, "CHECKPOINT")
}

// connect opens a session in the database.
func (s *stage) connect(ctx context.Context, application string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.Postgres.URL(database)+"&application_name="+application)
}

// metrics are values by unit.
type metrics map[string]float64

// measure has a cleaner empty a fresh copy of the table.
func (s *stage) measure(ctx context.Context, t table, clean cleaner) (metrics, error) {
	if err := s.copy(ctx, t); err != nil {
		return nil, err
	}
	if t.oldSnapshot {
		holder, err := s.connect(ctx, "snapshot")
		if err != nil {
			return nil, err
		}
		defer holder.Close(ctx) //nolint:errcheck // its transaction is nothing to keep
		if err := exec(ctx, holder, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM dbo.apiclients"); err != nil {
			return nil, err
		}
	}
	if _, err := s.log.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	before, err := s.account(ctx)
	if err != nil {
		return nil, err
	}
	m, took, err := clean(ctx, s)
	if err != nil {
		return nil, err
	}
	after, err := s.account(ctx)
	if err != nil {
		return nil, err
	}
	rows := float64(t.expired)
	m["rows/s"] = rows / took.Seconds()
	m["cpu-ns/row"] = float64(after.cpu-before.cpu) / rows
	m["WAL-B/row"] = (after.wal - before.wal) / rows
	if m["longest-ms"], err = s.longest(); err != nil {
		return nil, err
	}
	pages, err := s.look(ctx, before.now)
	m["pages/row"] = pages / rows
	return m, err
}

// account is what the server has used until now.
type account struct {
	now time.Time     // in UTC, as the table has it
	cpu time.Duration // of all of its processes
	wal float64       // bytes
}

// account waits for all sessions in the database to end, for that is when what
// they used is told, and reads the server's account.
func (s *stage) account(ctx context.Context) (a account, err error) {
	for sessions := 1; sessions > 0; time.Sleep(5 * time.Millisecond) {
		err := s.admin.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name <> 'snapshot'", database).Scan(&sessions)
		if err != nil {
			return a, err
		}
	}
	a.cpu = processorTime(int(s.admin.PgConn().PID()))
	return a, s.admin.QueryRow(ctx, "SELECT now() AT TIME ZONE 'utc', pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8").Scan(&a.now, &a.wal)
}

// processorTime returns that of a server, of which a session's process is told: of
// its parent, of the children that live, and of those that have ended. Linux
// alone tells it; elsewhere it is 0.
func processorTime(session int) time.Duration {
	_, server := processStat(session)
	paths, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is a good one
	ticks := 0
	for _, path := range paths {
		pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
		times, parent := processStat(pid)
		if pid == server || parent == server {
			ticks += times[0] + times[1]
		}
		if pid == server {
			ticks += times[2] + times[3]
		}
	}
	return time.Duration(ticks) * time.Second / 100 // Linux's unit, whatever the machine
}

// processStat returns a process's utime, stime, cutime and cstime, and its parent;
// nothing of one that is gone.
func processStat(pid int) (times [4]int, parent int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name is in brackets, and may hold anything. The state comes next.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 15 {
		return times, -1
	}
	for i := range times {
		times[i], _ = strconv.Atoi(fields[11+i])
	}
	parent, _ = strconv.Atoi(fields[1])
	return times, parent
}

// look makes sure that nothing is left that had expired at that time, and returns
// how often a page of the table or its indexes was looked at.
func (s *stage) look(ctx context.Context, before time.Time) (pages float64, err error) {
	conn, err := s.connect(ctx, "look")
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	left := 0
	err = conn.QueryRow(ctx, `
		SELECT heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0),
		       (SELECT count(*) FROM dbo.clientaccesstokens WHERE expiration <= $1)
		FROM pg_statio_user_tables WHERE relname = 'clientaccesstokens'`, before).Scan(&pages, &left)
	if err == nil && left != 0 {
		err = fmt.Errorf("%d expired rows are left", left)
	}
	return pages, err
}

var logged = regexp.MustCompile(`^(?:edfi-token-purge|cleaner)\|LOG:  duration: ([0-9.]+) ms`)

// longest returns the milliseconds of the longest of the cleaner's statements that
// the log has not been read for; 0 is below one.
func (s *stage) longest() (ms float64, err error) {
	lines := bufio.NewScanner(s.log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m := logged.FindStringSubmatch(lines.Text()); m != nil {
			took, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return 0, err
			}
			ms = max(ms, took)
		}
	}
	return ms, lines.Err()
}
