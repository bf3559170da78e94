package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/relay"
)

// terminal is a command on a terminal of its own.
type terminal struct {
	command *exec.Cmd
	device  *os.File
	closed  chan struct{} // nothing more is written

	mu      sync.Mutex
	written strings.Builder
}

func onTerminal(t *testing.T, c *exec.Cmd, columns uint16) *terminal {
	t.Helper()
	device, err := pty.StartWithSize(c, &pty.Winsize{Rows: screen, Cols: columns})
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{command: c, device: device, closed: make(chan struct{})}
	go func() {
		defer close(term.closed)
		io.Copy(term, device) //nolint:errcheck // it returns an error when the command ends
	}()
	t.Cleanup(func() { device.Close() })
	return term
}

// Write takes in what the command writes.
func (term *terminal) Write(text []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.written.Write(text)
}

// text returns all that was written so far.
func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.written.String()
}

// until waits for the command to write want.
func (term *terminal) until(t *testing.T, want string) {
	t.Helper()
	for !strings.Contains(term.text(), want) {
		select {
		case <-term.closed:
			t.Fatalf("it ended without %q:\n%s", want, term.text())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// end waits for the command to end.
func (term *terminal) end() (text string, state *os.ProcessState) {
	term.command.Wait() //nolint:errcheck // the state tells
	<-term.closed
	return term.text(), term.command.ProcessState
}

// display is what a command shows on a terminal.
type display struct {
	args      string
	databases []string // that there are, all alike
	expired   int      // rows in each, before each run
	still     bool     // they stay
	once      string   // SQL that the last of them gets once
	slow      bool     // it takes its time to delete
	env       string   // beside DATABASES, which are all of them
	code      int
	plain     bool // nothing but text: no colour, no sequence
	// shows is a line that stands there while the command works.
	shows *regexp.Regexp
	// beside does what happens beside the command that start starts.
	beside func(t *testing.T, last database, start func(env ...string) *terminal) *terminal
}

var (
	deletes = regexp.MustCompile(`^\[#+\.+\].* left$`)
	waits   = regexp.MustCompile(`waits: `)
)

// never is the setting with which a run makes way for no other test.
const never = "BATCH_TARGET=0s"

// displays are those of the golden files in testdata/terminal, by name.
func displays() map[string]display {
	var sixty []string
	for i := range 60 {
		sixty = append(sixty, fmt.Sprintf("EdFi_Sixty_%04d", i))
	}
	return map[string]display{
		"check":   {args: "check", databases: sixty},
		"dry-run": {args: "dry-run", databases: []string{"EdFi_Dry_1", "EdFi_Dry_2", "EdFi_Dry_3"}, expired: 1500, still: true},
		"purge":   {args: "purge -batch-size 10", databases: []string{"EdFi_Purge"}, expired: 150, slow: true, env: never, shows: deletes},
		"purges":  {args: "purge -batch-size 10", databases: []string{"EdFi_Purges_1", "EdFi_Purges_2"}, expired: 150, slow: true, env: never, shows: deletes},
		"partial": {args: "purge -max-rows 20", databases: []string{"EdFi_Partial"}, expired: 50, env: never, code: 3},
		"no-color": {
			args: "purge -batch-size 10 -max-rows 140", databases: []string{"EdFi_No_Color"}, expired: 150, slow: true, env: never + " NO_COLOR=1", code: 3,
			plain: true, shows: deletes,
		},
		"dumb": {
			args: "purge -batch-size 10 -max-rows 140", databases: []string{"EdFi_Dumb"}, expired: 150, slow: true, env: never + " TERM=dumb", code: 3,
			plain: true,
		},
		"failed": {
			args: "purge -batch-size 10", databases: []string{"EdFi_Failed_1", "EdFi_Failed_2"}, expired: 10, env: never, code: 1,
			once: "ALTER TABLE dbo.clientaccesstokens RENAME COLUMN expiration TO expires",
		},
		"rows-locked": {
			args: "purge", databases: []string{"EdFi_Rows_Locked"}, expired: 20, env: never + " LOCK_TIMEOUT=100ms",
			shows:  regexp.MustCompile(`^0 of 20 rows  waits: `), // for a moment more, where rows have gone already
			beside: holding("SELECT FROM dbo.clientaccesstokens WHERE expiration < now() AT TIME ZONE 'utc' FOR UPDATE"),
		},
		"table-locked": {
			args: "dry-run", databases: []string{"EdFi_Table_Locked"}, expired: 20, still: true, env: "LOCK_TIMEOUT=100ms", shows: waits,
			beside: holding("LOCK TABLE dbo.clientaccesstokens"),
		},
		"throttled": {args: "purge", databases: []string{"EdFi_Throttled"}, expired: 300, slow: true, shows: waits, beside: writing},
		"waking":    {args: "dry-run", databases: []string{"EdFi_Waking"}, expired: 20, still: true, shows: waits, beside: waking},
	}
}

func TestOnATerminalTheCommandShowsWhatItsGoldenFilesSay(t *testing.T) {
	t.Parallel()
	for name, d := range displays() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := alike(t, d.databases)
			last := all[len(all)-1]
			if d.slow {
				last.slow(t, "10ms")
			}
			for _, columns := range []int{80, 120} {
				d.run(t, name, all, columns)
			}
		})
	}
}

// alike creates databases until the test ends, as copies of the first.
func alike(t *testing.T, names []string) (all []database) {
	t.Helper()
	newNamed(t, names[0], 0, 3).conn.Close(t.Context()) //nolint:errcheck // nobody may use what is copied
	admin := database{name: "postgres"}
	admin.connect(t)
	t.Cleanup(func() {
		for _, name := range names {
			admin.conn.Exec(context.Background(), "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)") //nolint:errcheck // the server goes too
		}
	})
	for i, name := range names {
		if i > 0 {
			admin.exec(t, fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", pgx.Identifier{name}.Sanitize(), pgx.Identifier{names[0]}.Sanitize()))
		}
		all = append(all, database{name: name})
	}
	for i := range all {
		if i < 3 || i == len(all)-1 {
			all[i].connect(t)
		}
	}
	return all
}

// connect opens the test's own connection.
func (db *database) connect(t *testing.T) {
	t.Helper()
	var err error
	if db.conn, err = pgx.Connect(t.Context(), stage.Postgres.URL(db.name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.conn.Close(context.Background()) })
}

// run runs the command and compares what it shows with the golden file.
func (d display) run(t *testing.T, name string, all []database, columns int) {
	t.Helper()
	last := all[len(all)-1]
	for i, db := range all {
		if d.expired == 0 || d.once != "" && i == len(all)-1 || d.still && columns > 80 {
			continue
		}
		if err := edfi.Fill(t.Context(), db.conn, edfi.FillOptions{Expired: d.expired}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if d.once != "" && columns == 80 {
		last.exec(t, d.once)
	}
	start := func(env ...string) *terminal {
		return onTerminal(t, last.command(t, d.args, append(append(strings.Fields(d.env), "DATABASES="+strings.Join(d.databases, ",")), env...)...), uint16(columns))
	}
	if d.beside == nil {
		d.beside = func(_ *testing.T, _ database, start func(...string) *terminal) *terminal { return start() }
	}
	text, state := d.beside(t, last, start).end()
	if state.ExitCode() != d.code {
		t.Errorf("%s, want %d", state, d.code)
	}
	lines := redrawn(text)
	for _, line := range lines {
		if width(line) > columns {
			t.Errorf("%d columns are too few for %q", columns, line)
		}
	}
	if d.plain && strings.Contains(text, "\x1b") {
		t.Errorf("a sequence in %q", text)
	}
	if strings.Contains(d.env, "TERM=dumb") && strings.Contains(strings.ReplaceAll(text, "\r\n", ""), "\r") {
		t.Errorf("a line is written over in %q", text)
	}
	if onOne := strings.Count(text, "\n") < screen; !onOne { // the prompt is one more
		t.Errorf("%d lines are no screen", strings.Count(text, "\n"))
	}
	compare(t, fmt.Sprintf("%s-%d.txt", name, columns), d.normal(text))
}

// compare holds what the command shows against a golden file.
func compare(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join("testdata", "terminal", name)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || got != string(want) {
		t.Errorf("%s: %v\n%s", golden, err, got)
	}
}

// What is no terminal gets lines of text alone, and none is wrapped.
func TestWithoutATerminalTheCommandWritesWhatItsGoldenFileSays(t *testing.T) {
	t.Parallel()
	all := alike(t, []string{"EdFi_Piped_1", "EdFi_Piped_2"})
	if err := edfi.Fill(t.Context(), all[0].conn, edfi.FillOptions{Expired: 50}, nil); err != nil {
		t.Fatal(err)
	}
	all[1].exec(t, "ALTER TABLE dbo.clientaccesstokens RENAME COLUMN expiration TO expires")
	stdout, stderr, code := piped(t, all[0].command(t, "purge -max-rows 20", "DATABASES=EdFi_Piped_1,EdFi_Piped_2", never))
	if code != 1 || strings.ContainsAny(stdout+stderr, "\r\x1b") {
		t.Errorf("%d\n%q", code, stdout+stderr)
	}
	compare(t, "piped.txt", display{}.normal(stdout))
}

// varying is what differs from one run to the next, and what stands for it.
var varying = []struct {
	what *regexp.Regexp
	as   string
}{
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "127.0.0.1:5432"},
	{regexp.MustCompile(`(?m)^(STATUS .*TIME) +DATABASE$`), "$1   DATABASE"},
	{regexp.MustCompile(`(?m) \d[\d.ms]*s +(EdFi|all)`), " 0.50s  $1"},
	{regexp.MustCompile(`20\d\d-\d\d-\d\d \d\d:\d\d`), "2026-01-31 12:00"},
	{regexp.MustCompile(`\[#+\.*\] +\d+%  \d+ of`), "[##########..........]  50%  75 of"},
	{regexp.MustCompile(`session \d+`), "session 4711"},
	{regexp.MustCompile(`(?m)^\d+ of 300 rows`), "75 of 300 rows"},
	{regexp.MustCompile(`\d+/s`), "80/s"},
	{regexp.MustCompile(`made way for .*s`), "made way for 1.5s"},
	{regexp.MustCompile(`(?m)^complete  300      \d+ +0.50s  EdFi_Throttled`), "complete  300      40       0.50s  EdFi_Throttled"},
	{regexp.MustCompile(`\d+s left`), "2s left"},
}

// normal returns the line that was shown meanwhile, and what stands on the terminal in
// the end, without what varies. Colours have names.
func (d display) normal(text string) string {
	var lines []string
	meanwhile := ""
	for line := range strings.SplitSeq(strings.ReplaceAll(text, "\r\n", "\n"), "\n") {
		frames := strings.Split(line, "\r") // each is written over the one before
		for i, frame := range frames {
			frames[i] = strings.TrimRight(frame, " ")
			if frame = frames[i]; d.shows != nil && d.shows.MatchString(frame) {
				meanwhile = frame + "\n\n"
			}
		}
		lines = append(lines, frames[len(frames)-1])
	}
	text = meanwhile + strings.Join(lines, "\n")
	for _, v := range varying {
		text = v.what.ReplaceAllString(text, v.as)
	}
	return strings.NewReplacer("\x1b[32m", "<green>", "\x1b[33m", "<yellow>", "\x1b[31m", "<red>", plain, "<plain>").Replace(text)
}

// holding has another session hold what sql locks, until the command waits for it.
func holding(sql string) func(*testing.T, database, func(...string) *terminal) *terminal {
	return func(t *testing.T, last database, start func(...string) *terminal) *terminal {
		last.exec(t, "SET application_name = 'nightly report'; BEGIN; "+sql)
		term := start()
		term.until(t, "waits: ")
		last.exec(t, "ROLLBACK")
		return term
	}
}

// writing has another session write, until the command makes way for it.
func writing(t *testing.T, last database, start func(...string) *terminal) *terminal {
	last.exec(t, "CREATE TABLE IF NOT EXISTS dbo.other (n int)")
	term := start()
	for !strings.Contains(term.text(), "waits: ") {
		select {
		case <-term.closed:
			t.Fatalf("it made way for nobody:\n%s", term.text())
		default:
			last.exec(t, "INSERT INTO dbo.other VALUES (1)")
		}
	}
	return term
}

// waking has the command connect to a server that starts, until it waits for it.
func waking(t *testing.T, last database, start func(...string) *terminal) *terminal {
	starting, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer starting.Close()
	go func() {
		for {
			client, err := starting.Accept()
			if err != nil {
				return
			}
			backend := pgproto3.NewBackend(client, client)
			backend.ReceiveStartupMessage() //nolint:errcheck // whatever it says
			backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is starting up"})
			backend.Flush() //nolint:errcheck // it may be gone
			client.Close()
		}
	}()
	way, err := relay.New(starting.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { way.Close() })
	term := start("DATABASE_URL=" + strings.Replace(last.url(), fmt.Sprintf(":%d/", stage.Postgres.Port), fmt.Sprintf(":%d/", way.Port()), 1))
	term.until(t, "waits: ")
	way.PointTo(fmt.Sprintf("%s:%d", stage.Postgres.Host, stage.Postgres.Port))
	return term
}
