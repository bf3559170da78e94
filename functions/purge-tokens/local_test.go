package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/fakeaws"
)

// command is a run of the binary outside of Lambda.
func (db database) command(t *testing.T, args string, env ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	c := exec.CommandContext(ctx, stage.Binary, strings.Fields(args)...)
	c.Env = append([]string{"DATABASE_URL=" + db.url(), "DATABASES=" + db.name, "TERM=xterm"}, env...)
	return c
}

func (db database) url() string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(stage.Postgres.User, stage.Postgres.Password),
		Host: fmt.Sprintf("%s:%d", stage.Postgres.Host, stage.Postgres.Port), Path: db.name, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// piped runs c without a terminal.
func piped(t *testing.T, c *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	var ended *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	if strings.Contains(out.String()+errs.String(), stage.Postgres.Password) {
		t.Errorf("the password is shown:\n%s%s", out.String(), errs.String())
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

const controlC = "\x03"

func TestTheCommandDoesWhatTheFunctionDoes(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 90, 7) // one batch, even where other tests write
	stdout, stderr, code := piped(t, db.command(t, "check"))
	if code != 0 || !regexp.MustCompile(`(?m)^complete +[\d.]+s +`+db.name+`$`).MatchString(stdout) || stderr != "" {
		t.Errorf("check: %d\n%s%s", code, stdout, stderr)
	}
	stdout, _, code = piped(t, db.command(t, "dry-run"))
	if code != 0 || !regexp.MustCompile(`(?m)^complete +90 +20..-..-.. ..:.. UTC +[\d.]+s +`+db.name+`$`).MatchString(stdout) {
		t.Errorf("dry-run: %d\n%s", code, stdout)
	}
	db.expect(t, 90, 7)
	// By way of Secrets Manager, with the credentials and region of the environment.
	managed := db.command(t, "purge")
	managed.Env = []string{
		"SECRET_ID=edfi/admin-database", "DATABASES=" + db.name, "DB_TLS=disable", "AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID=standin", "AWS_SECRET_ACCESS_KEY=standin", "AWS_ENDPOINT_URL_SECRETS_MANAGER=" + stage.Secrets.URL(),
	}
	stdout, stderr, code = piped(t, managed)
	if code != 0 || !regexp.MustCompile(`(?m)^complete +90 +1 +[\d.]+s +`+db.name+`$`).MatchString(stdout) || stderr != "" {
		t.Errorf("purge: %d\n%s%s", code, stdout, stderr)
	}
	db.expect(t, 0, 7)
}

func TestTheCommandSaysItsVersion(t *testing.T) {
	t.Parallel()
	for _, word := range []string{"version", "-version"} {
		out, err := exec.Command(stage.Binary, word).Output() // without any setting
		if want := "purge-tokens dev, commit unknown, " + runtime.Version() + "\n"; err != nil || string(out) != want {
			t.Errorf("%s: %q, %v, want %q", word, out, err, want)
		}
	}
}

func TestTheCommandEndsWithACodeForScripts(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 30, 3)
	for _, c := range []struct {
		args, env string
		code      int
		want      string // on standard error, or where that is empty, on standard output
	}{
		{"", "", 2, "purge-tokens dry-run"},
		{"-h", "", 0, "purge-tokens dry-run"},
		{"delete", "", 2, "must be purge, dry-run or check"},
		{"purge now", "", 2, `"now" is one word too many`},
		{"purge -force", "", 2, "-force"},
		{"purge -max-rows 0", "", 2, "-max-rows: must be a whole number, at least 1"},
		{"purge -max-duration 5", "", 2, "-max-duration: must be a duration"},
		{"purge -databases EdFi_*", "", 2, "-databases: must hold plain names"},
		{"purge -databases postgres", "", 2, "none of those that DATABASES allows"},
		{"purge -grace-period 1h", "GRACE_PERIOD=2h", 2, "shorter than the configured GRACE_PERIOD"},
		{"purge", "PAUSE=5", 2, "ConfigurationError: PAUSE must be"},
		{"purge", "DATABASES=" + strings.Repeat("x", 64), 2, "ConfigurationError: DATABASES"},
		{"purge", "DATABASE_URL=", 2, "SECRET_ID is required: the name or ARN of the secret; or DATABASE_URL"},
		{"purge", "SECRET_ID=x", 2, "DATABASE_URL and SECRET_ID are both set"},
		{"purge", "DATABASE_URL=postgres://u:hunter2@h/d?host=g", 2, "no other parameters"},
		{"purge", "DATABASES=EdFi_Admin_Nowhere", 1, "does not exist"},
		{"purge", "DATABASES=nothing_like_it*", 1, "PurgeFailed"},
		{"dry-run", "", 0, "complete"},
		{"purge -batch-size 5 -max-rows 10", "", 3, "partial max-rows"},
		{"purge", "", 0, "complete"},
	} {
		stdout, stderr, code := piped(t, db.command(t, c.args, c.env))
		said := stderr
		if said == "" {
			said = stdout
		}
		if code != c.code || !strings.Contains(said, c.want) || strings.Contains(said, "hunter2") {
			t.Errorf("%s %s: ended with %d, want %d, and %q in\n%s", c.env, c.args, code, c.code, c.want, said)
		}
	}
	// DATABASE_URL needs no region.
	managed := db.command(t, "purge")
	managed.Env = []string{"SECRET_ID=x", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"}
	if _, stderr, code := piped(t, managed); code != 2 || !strings.Contains(stderr, "AWS_REGION is required") {
		t.Errorf("no region: %d\n%s", code, stderr)
	}
	db.expect(t, 0, 3)
}

func TestTheHelpShowsItsExampleAndNoFaultTalksOfASecretThatThereIsNot(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 3, 3)
	for _, c := range []struct {
		args, env, want string
	}{
		{"-h", "", "DATABASE_URL=postgres://user:password@host:5432/EdFi_Admin"},
		{"-h", "", "DATABASE_URL=sqlserver://user:password@host:1433?database=EdFi_Admin"},
		{"", "", "DATABASE_URL=postgres://user:password@host:5432/EdFi_Admin"},
		{"purge", "DATABASE_URL=wh0isit", "postgres://user:password@host:port/database"},
		{"purge", "DATABASE_URL=postgres://u:a/b@h/d", "postgres://user:password@host:port/database"},
		{"purge", "DATABASE_URL=server=h;user id=u;password=p", "DATABASE_URL names no engine: set DB_ENGINE"},
		{"purge", "DATABASE_URL=host=a b;username=u;password=p", "DATABASE_URL can't be used: the host must be the name"},
		{"purge", "DATABASE_URL=" + strings.Replace(db.url(), stage.Postgres.Password, "wh0isit", 1), "user name and password; they come from DATABASE_URL"},
	} {
		stdout, stderr, _ := piped(t, db.command(t, c.args, c.env))
		if said := stdout + stderr; !strings.Contains(said, c.want) || strings.Contains(said, "the secret") && c.args != "-h" && c.args != "" || strings.Contains(said, "wh0isit") {
			t.Errorf("%s %s: no %q in\n%s", c.env, c.args, c.want, said)
		}
	}
}

// What is for psql sends the function nowhere else, and keeps it from nothing.
func TestVariablesOfPostgresChangeNothing(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{
		"PGSERVICE=nowhere", "PGSERVICEFILE=/nowhere", "PGTARGETSESSIONATTRS=read-only", "PGTARGETSESSIONATTRS=nonsense", "PGSSLROOTCERT=/nowhere", "PGSSLCERT=/nowhere",
		"PGSSLMODE=nonsense", "PGPORT=1", "PGHOST=nowhere.invalid", "PGOPTIONS=-c search_path=nowhere", "PGCONNECT_TIMEOUT=nonsense", "PGTZ=nowhere",
		"PGCHANNELBINDING=require", "PGREQUIREAUTH=none", "PGMINPROTOCOLVERSION=nonsense", "PGPASSWORD=wh0isit", "PGUSER=nobody", "PGAPPNAME=x",
	} {
		db := newDatabase(t, 3, 3)
		stdout, stderr, code := piped(t, db.command(t, "purge", variable))
		if code != 0 || stderr != "" {
			t.Errorf("%s: %d\n%s%s", variable, code, stdout, stderr)
		}
	}
}

func TestAConnectionStringOfEdFiTakesThePlaceOfASecret(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 3, 3)
	text := fmt.Sprintf("host=%s;port=%d;username=%s;password='%s';database=%s;SSL Mode=Disable;pooling=true", stage.Postgres.Host, stage.Postgres.Port,
		stage.Postgres.User, strings.ReplaceAll(stage.Postgres.Password, "'", "''"), db.name)
	stdout, stderr, code := piped(t, db.command(t, "purge", "DATABASE_URL="+text, "DATABASES="))
	if code != 0 || !strings.Contains(stdout, db.name) {
		t.Errorf("%d\n%s%s", code, stdout, stderr)
	}
	db.expect(t, 0, 3)
}

func TestControlCharactersInNamesAreShownEscaped(t *testing.T) {
	t.Parallel()
	db := newNamed(t, fmt.Sprintf("bell%d_\a\x1b[2J\u202e", created.Add(1)), 3, 3)
	pattern := db.name[:strings.IndexByte(db.name, '_')] + "_*"
	by := database{name: "postgres"} // a URL takes no such name
	stdout, stderr, code := piped(t, by.command(t, "purge", "DATABASES="+pattern))
	if code != 0 || strings.ContainsAny(stdout+stderr, "\a\x1b\u202e") || !strings.Contains(stdout, `  bell`) || !strings.Contains(stdout, `_\a\x1b[2J\u202e`) {
		t.Errorf("%d\n%q\n%q", code, stdout, stderr)
	}
}

func TestWhatTheCommandWritesCanBeChosen(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 30, 3)
	stdout, stderr, code := piped(t, db.command(t, "purge -json -v", "BATCH_SIZE=10"))
	for _, want := range []string{`"status": "complete"`, `"deletedRows": 30`, `"batches": 3`} {
		if code != 0 || !strings.HasPrefix(stdout, "{") || !strings.Contains(stdout, want) {
			t.Errorf("%d, want %s in\n%s", code, want, stdout)
		}
	}
	for _, want := range []string{"msg=start", "msg=batch", "msg=database", "msg=end"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %s in\n%s", want, stderr)
		}
	}
	stdout, _, _ = piped(t, db.command(t, "dry-run -metrics"))
	if m := oneMetric(t, stdout); m.Database != db.name || m.StopReason != "dry-run" {
		t.Errorf("%+v", m)
	}
}

func TestInAPipeThereAreLinesAndNoControlCharacters(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 150, 3)
	db.slow(t, "40ms") // for longer than the first line of progress takes
	stdout, stderr, code := piped(t, db.command(t, "purge", "BATCH_SIZE=10", "BATCH_TARGET=0s"))
	if code != 0 || strings.ContainsAny(stdout+stderr, "\r\x1b") {
		t.Errorf("%d\n%q\n%q", code, stdout, stderr)
	}
	if !regexp.MustCompile(`(?m)^purge-tokens: \d+ rows  \d+/s$`).MatchString(stderr) {
		t.Errorf("no progress:\n%s", stderr)
	}
}

// redrawn returns the lines that a terminal showed, without what was written over.
func redrawn(screen string) (lines []string) {
	for _, line := range strings.FieldsFunc(screen, func(r rune) bool { return r == '\r' || r == '\n' }) {
		if line = strings.TrimRight(line, " "); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestOnATerminalThereIsABarThatFits(t *testing.T) {
	t.Parallel()
	for _, columns := range []int{60, 80} {
		db := newDatabase(t, 150, 3)
		db.slow(t, "10ms")
		screen, state := onTerminal(t, db.command(t, "purge", "BATCH_SIZE=10", "BATCH_TARGET=0s"), uint16(columns)).end()
		lines := redrawn(screen)
		for _, line := range lines {
			if width(line) > columns {
				t.Errorf("%d columns are too few for %q", columns, line)
			}
		}
		whole := strings.Join(lines, "\n")
		if state.ExitCode() != 0 || !regexp.MustCompile(`(?m)^\[#+\.+\] +\d+%  \d+ of 150 rows  \d+/s  \d+s left$`).MatchString(whole) ||
			!regexp.MustCompile(`(?m)^complete +150 +15 +[\d.]+s +`+db.name+`$`).MatchString(whole) {
			t.Errorf("%s\n%s", state, whole)
		}
		db.expect(t, 0, 3)
	}
}

func TestAnInterruptedCommandStopsAfterTheBatchInHand(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(*terminal) error{
		"Ctrl-C":  func(term *terminal) error { _, err := term.device.WriteString(controlC); return err },
		"SIGTERM": func(term *terminal) error { return term.command.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newDatabase(t, 400, 3)
			db.slow(t, "20ms")
			term := onTerminal(t, db.command(t, "purge", "BATCH_SIZE=20", "BATCH_TARGET=0s"), 60)
			db.untilDeleting(t)
			if err := interrupt(term); err != nil {
				t.Fatal(err)
			}
			screen, state := term.end()
			expired, live := db.counts(t)
			deleted := 400 - expired
			if state.ExitCode() != 3 || deleted == 0 || deleted == 400 || deleted%20 != 0 || live != 3 {
				t.Errorf("%s with %d rows deleted and %d live", state, deleted, live)
			}
			for _, want := range []string{"stopping after the batches in hand", "partial canceled", fmt.Sprintf("partial  %d ", deleted)} {
				if !strings.Contains(screen, want) {
					t.Errorf("no %q in\n%s", want, screen)
				}
			}
		})
	}
}

func TestAnInterruptionBeforeAnyDatabaseIsNoFault(t *testing.T) {
	t.Parallel()
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.Close()
	secrets.Hang()
	command := exec.CommandContext(t.Context(), stage.Binary, "purge")
	command.Env = []string{
		"SECRET_ID=x", "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=standin", "AWS_SECRET_ACCESS_KEY=standin",
		"AWS_ENDPOINT_URL_SECRETS_MANAGER=" + secrets.URL(),
	}
	term := onTerminal(t, command, 80)
	for secrets.Calls() == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := term.device.WriteString(controlC); err != nil {
		t.Fatal(err)
	}
	if screen, state := term.end(); state.ExitCode() != 3 || !strings.Contains(screen, "interrupted before anything was done") {
		t.Errorf("%s\n%s", state, screen)
	}
}

func TestASecondCtrlCStopsAtOnce(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 100, 3)
	db.slow(t, "1s")
	term := onTerminal(t, db.command(t, "purge", "BATCH_TARGET=0s"), 80)
	db.untilDeleting(t)
	ended := make(chan *os.ProcessState)
	go func() {
		_, state := term.end()
		ended <- state
	}()
	var state *os.ProcessState
	for state == nil {
		term.device.WriteString(controlC) //nolint:errcheck // it may have ended
		select {
		case state = <-ended:
		case <-time.After(time.Second): // two that come together are one signal
		}
	}
	if status := state.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Error(state)
	}
}

func TestLambdaTakesNoDatabaseURL(t *testing.T) {
	t.Parallel()
	reply, _ := start(t, "SECRET_ID=", "DATABASE_URL=postgres://u:p@h/d").invoke(t, `{}`)
	expectError(t, reply, "ConfigurationError", "SECRET_ID is required: the name or ARN of the secret")
}

func TestTheLineOfProgressFitsAnyTerminal(t *testing.T) {
	for columns := range 120 {
		p := &progress{
			terminal: true, action: purge.Purge, databases: 1, counted: map[string]bool{"a": true},
			total: 123_456_789, deleted: 12_345_678, began: time.Now().Add(-time.Hour),
		}
		if line := p.line(columns); columns > 0 && len(line) > columns {
			t.Errorf("%d columns: %q", columns, line)
		}
	}
}

func TestPatternsWithoutTheDatabaseOfTheURLSayWhatToDo(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 1, 0)
	nowhere := database{name: "EdFi_Admin_Nowhere"}
	_, stderr, code := piped(t, nowhere.command(t, "check", "DATABASES="+db.name+"*"))
	if code != 1 || !strings.Contains(stderr, "read in EdFi_Admin_Nowhere") || !strings.Contains(stderr, "have the secret or DATABASE_URL name one that exists, or none") {
		t.Errorf("%d\n%s", code, stderr)
	}
	// Without one it is read where every server has a database.
	none := database{}
	if stdout, stderr, code := piped(t, none.command(t, "check", "DATABASES="+db.name+"*")); code != 0 || !strings.Contains(stdout, db.name) {
		t.Errorf("%d\n%s%s", code, stdout, stderr)
	}
}

// backlogs is an engine of one database with so many expired rows in each table, whose
// clocks differ.
type backlogs struct {
	looked
	rows map[string]int64
	open purge.Table
	cut  map[string]time.Time
}

func (b *backlogs) Open(ctx context.Context, _ string, table purge.Table, _ bool) (purge.Conn, error) {
	if err := b.Switch(ctx, table); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *backlogs) Switch(_ context.Context, table purge.Table) error {
	if _, there := b.rows[table.Name]; !there {
		return purge.NotPurgeable{Kind: purge.NoTable, Message: "no table"}
	}
	b.open = table
	return nil
}

func (b *backlogs) Facts() purge.Facts {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	return purge.Facts{Now: now, Clock: now.Add(-6 * time.Hour)}
}

func (b *backlogs) Expired(_, to time.Time) purge.Window {
	b.cut[b.open.Name] = to
	return 0
}

func (b *backlogs) Count(context.Context, purge.Window) (int64, error) {
	return b.rows[b.open.Name], nil
}

func TestTheProgressKnowsTheRowsOfAllTablesThatWillGo(t *testing.T) {
	b := &backlogs{rows: map[string]int64{purge.AdminTokens.Name: 10, purge.ClientAccessTokenLogs.Name: 200}, cut: map[string]time.Time{}}
	p := newProgress(os.Stderr)
	p.terminal = true
	e := p.over(purge.Target{Engine: b, Tables: purge.Tables(), Databases: []purge.Database{{Name: "a"}}}, purge.Policy{Action: purge.Purge, Grace: time.Hour})
	for i, table := range purge.Tables() { // the first is not there
		if _, err := e.Open(t.Context(), "a", table, true); (err != nil) != (i == 0 || i == 2) {
			t.Errorf("%s: %v", table, err)
		}
	}
	if p.total != 210 || p.uncounted || len(p.counted) != 1 {
		t.Errorf("%d rows, unknown: %t", p.total, p.uncounted)
	}
	for _, table := range []purge.Table{purge.AdminTokens, purge.ClientAccessTokenLogs} {
		if want := table.Cutoff(b.Facts().Clock, time.Hour); !b.cut[table.Name].Equal(want) {
			t.Errorf("%s is counted up to %s, and purged up to %s", table, b.cut[table.Name], want)
		}
	}
}
