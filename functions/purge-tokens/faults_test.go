package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/fakeaws"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/relay"
	"edfi-token-purge/functions/internal/testing/rig"
)

// Faults between the function and the database in the middle of a run: the real
// binary, a real PostgreSQL, and a relay in between that makes the faults.
// docs/reliability.md lists these tests.

const (
	faultExpired = 2000
	faultLive    = 40
	faultBatch   = 50
)

// scene is a database behind a relay, with a function that connects through it.
type scene struct {
	database
	relay    *relay.Relay
	server   *pgserver.Server
	secret   string // its id
	function function
}

// newScene creates a scene on a server that takes a millisecond for each row, so
// that a run lasts long enough to be disturbed.
func newScene(t *testing.T, on *rig.Rig, expired int, env ...string) *scene {
	t.Helper()
	db := newOn(t, on, fmt.Sprintf("EdFi_Admin_%d", created.Add(1)), expired, faultLive)
	s := &scene{database: db, server: on.Postgres, secret: "fault/" + db.name}
	var err error
	if s.relay, err = relay.New(s.address()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.relay.Close() })
	s.login(s.server.User, s.server.Password)
	s.slow(t, "1ms")
	s.witness(t)
	s.function = s.start(t, append([]string{fmt.Sprintf("BATCH_SIZE=%d", faultBatch), "BATCH_TARGET=0s"}, env...)...)
	return s
}

// start starts a function that connects through the relay.
func (s *scene) start(t *testing.T, env ...string) function {
	t.Helper()
	return s.database.start(t, append(env, "SECRET_ID="+s.secret)...)
}

func (s *scene) address() string {
	return net.JoinHostPort(s.server.Host, strconv.Itoa(int(s.server.Port)))
}

// login puts a login into the secret, with the relay's address.
func (s *scene) login(user, password string) {
	stage.Secrets.Put(s.secret, fmt.Sprintf(`{"engine":"postgres","host":"127.0.0.1","port":%d,"username":%q,"password":%q}`, s.relay.Port(), user, password))
}

func (db database) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := db.conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// witness records every token that the database has or will have.
func (db database) witness(t *testing.T) {
	t.Helper()
	db.exec(t, `
CREATE SCHEMA witness;
CREATE TABLE witness.tokens AS SELECT id, expiration FROM dbo.clientaccesstokens;
CREATE INDEX ON witness.tokens (id);
CREATE FUNCTION witness.remember() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO witness.tokens SELECT id, expiration FROM fresh; RETURN NULL; END $$;
CREATE TRIGGER remember AFTER INSERT ON dbo.clientaccesstokens REFERENCING NEW TABLE AS fresh
FOR EACH STATEMENT EXECUTE FUNCTION witness.remember()`)
}

// gone returns how many tokens have left the table. It ends the test if one of them
// was live.
func (db database) gone(t *testing.T) (rows int64) {
	t.Helper()
	var live int64
	if err := db.conn.QueryRow(t.Context(), `
SELECT count(*), count(*) FILTER (WHERE expiration > now() AT TIME ZONE 'utc')
FROM witness.tokens AS w WHERE NOT EXISTS (SELECT FROM dbo.clientaccesstokens AS t WHERE t.id = w.id)`).Scan(&rows, &live); err != nil {
		t.Fatal(err)
	}
	if live > 0 {
		t.Fatalf("%d live rows are gone", live)
	}
	return rows
}

// count checks what one run published against the rows that left since before:
// it is never more, and less only by batches whose acknowledgement was lost.
func (db database) count(t *testing.T, before, published, batch, lost int64) {
	t.Helper()
	left := db.gone(t) - before
	if published > left || published < left-lost*batch {
		t.Errorf("published %d, %d rows left the table; at most %d batches of %d can be missing", published, left, lost, batch)
	}
}

// drain runs the function once more without a fault. The database must be free as
// soon as the server has noticed that the run before is gone. The run must leave none
// of the rows that had expired at its cut-off, and all others.
func (db database) drain(t *testing.T, f function) (deleted int64) {
	t.Helper()
	var r purge.DatabaseResult
	// The server notices at the next row. A driver that lingers takes 15 s.
	for patience := time.Now().Add(8 * time.Second); time.Now().Before(patience); {
		reply, lines := f.invoke(t, `{}`)
		r = db.result(t, reply)
		if m := oneMetric(t, lines); m.DeletedRows != r.DeletedRows {
			t.Errorf("published %d rows, returned %d", m.DeletedRows, r.DeletedRows)
		}
		if r.StopReason != "already-running" {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if r.Status != "complete" {
		t.Errorf("the run after the fault: %+v", r)
		return r.DeletedRows
	}
	var forgotten, early int
	if err := db.conn.QueryRow(t.Context(), `
SELECT (SELECT count(*) FROM dbo.clientaccesstokens WHERE expiration <= cutoff),
       (SELECT count(*) FROM witness.tokens AS w WHERE expiration > cutoff AND NOT EXISTS (SELECT FROM dbo.clientaccesstokens AS t WHERE t.id = w.id))
FROM (SELECT $1::text::timestamptz AT TIME ZONE 'utc' AS cutoff) AS run`, r.Cutoff.String()).Scan(&forgotten, &early); err != nil {
		t.Fatal(err)
	}
	if forgotten > 0 || early > 0 {
		t.Errorf("%d expired rows are forgotten, %d rows went before they had expired", forgotten, early)
	}
	return r.DeletedRows
}

// A fault disturbs a run while it deletes.
type fault struct {
	strike func(t *testing.T, s *scene)
	before func(t *testing.T, s *scene) // called before the run; nil is nothing
	lost   int64                        // batches whose acknowledgements may be lost
	undoes bool                         // the server loses what was committed last
	status purge.Status                 // of the disturbed run; "" is any
	env    []string
	time   time.Duration // until Lambda's timeout; 0 is a minute
	own    bool          // it needs a server of its own
}

func TestFaults(t *testing.T) {
	faults := map[string]fault{
		"latency": {
			before: func(_ *testing.T, s *scene) { s.relay.Delay(20 * time.Millisecond) },
			status: "complete",
		},
		"a network that goes silent": {
			strike: func(_ *testing.T, s *scene) { s.relay.Silence() },
			lost:   2, status: "partial", time: 10 * time.Second, env: []string{"STOP_BEFORE=5s"},
		},
		"connections reset": {
			strike: func(_ *testing.T, s *scene) { s.relay.Reset() },
			status: "complete",
		},
		"connections reset of several that delete": {
			strike: func(_ *testing.T, s *scene) {
				time.Sleep(500 * time.Millisecond) // until there are several connections
				s.relay.Reset()
			},
			lost: 2 * 2, status: "complete", env: []string{"CONCURRENCY=3"},
		},
		"a server that is away for a while": {
			strike: func(_ *testing.T, s *scene) {
				s.relay.Refuse()
				s.relay.Reset()
				time.Sleep(time.Second)
				s.relay.Heal()
			},
			status: "complete",
		},
		"a lost acknowledgement": {
			strike: func(_ *testing.T, s *scene) { s.relay.CutAt(relay.ToClient, "DELETE ") },
			status: "complete",
		},
		"pg_terminate_backend": {
			strike: func(t *testing.T, s *scene) { s.terminate(t) },
			status: "complete",
		},
		"fail-over to another address": {
			strike: failOver,
			status: "complete",
		},
		"a rotated login": {
			before: func(t *testing.T, s *scene) {
				s.exec(t, `CREATE ROLE "`+s.name+`" LOGIN SUPERUSER PASSWORD 'before'`)
				s.login(s.name, "before")
			},
			strike: func(t *testing.T, s *scene) {
				s.exec(t, `ALTER ROLE "`+s.name+`" PASSWORD 'after'`)
				s.login(s.name, "after")
				s.terminate(t)
			},
			status: "complete",
		},
		"a restarted server": {
			strike: restart((*pgserver.Server).Restart),
			status: "complete", own: true,
		},
		"a crashed server": {
			strike: func(t *testing.T, s *scene) {
				time.Sleep(300 * time.Millisecond) // for a batch to be committed
				restart((*pgserver.Server).Crash)(t, s)
			},
			undoes: true, status: "complete", own: true,
		},
	}
	for _, way := range []relay.Way{relay.ToServer, relay.ToClient} {
		for i := range 4 { // the log-in is among the first 1,500 bytes
			faults[fmt.Sprintf("a cut at a random byte %s, %d", way, i)] = fault{
				before: func(t *testing.T, s *scene) {
					n := rand.N(1500) + i*1000
					t.Logf("byte %d", n)
					s.relay.CutAfter(way, n)
					t.Cleanup(func() {
						if s.relay.Cuts() != 1 {
							t.Error("nothing was cut")
						}
					})
				},
			}
		}
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			on := stage
			if f.own {
				on = ownStage(t)
			}
			s := newScene(t, on, faultExpired, f.env...)
			s.suffer(t, f)
		})
	}
}

// ownStage is a stage whose server no other test uses.
func ownStage(t *testing.T, env ...string) *rig.Rig {
	t.Helper()
	own, err := pgserver.Start(t.Context(), pgserver.Options{Own: true, Env: env, Settings: map[string]string{
		"fsync":            "off",
		"wal_writer_delay": "10s", // so that a crash loses more than the half second of the default
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Stop() }) //nolint:errcheck // what is left is in a temporary directory
	return &rig.Rig{Postgres: own, Secrets: stage.Secrets, Binary: stage.Binary}
}

// restart returns a fault that ends the test's own connection too.
func restart(how func(*pgserver.Server, context.Context) error) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		err := how(s.server, t.Context())
		if err == nil {
			s.conn, err = pgx.Connect(t.Context(), s.server.URL(s.name))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.conn.Close(context.Background()) })
	}
}

// outcome is the result of an invocation.
type outcome struct {
	reply fakeaws.Reply
	lines string
	err   error
}

// run invokes the function and does not wait for it.
func (f function) run(t *testing.T, event string, timeout time.Duration) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() {
		reply, lines, err := f.Invoke(t.Context(), event, timeout)
		ended <- outcome{reply, lines, err}
	}()
	return ended
}

// suffer disturbs a run with f, and checks the outcome.
func (s *scene) suffer(t *testing.T, f fault) {
	t.Helper()
	if f.before != nil {
		f.before(t, s)
	}
	if f.time == 0 {
		f.time = time.Minute
	}
	ended := s.function.run(t, `{}`, f.time)
	var struck time.Time // by the database's clock
	if f.strike != nil {
		s.untilDeleting(t)
		if err := s.conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&struck); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(500 * time.Millisecond))
		f.strike(t, s)
	}
	a := <-ended
	if a.err != nil {
		t.Fatalf("%v\n%s", a.err, a.lines)
	}
	m := oneMetric(t, a.lines)
	if a.reply.Error != nil && f.status != "" {
		t.Errorf("%+v", *a.reply.Error)
	} else if a.reply.Error == nil {
		if r := s.result(t, a.reply); r.Status != f.status && f.status != "" || r.DeletedRows != m.DeletedRows || m.Failures != 0 {
			t.Errorf("%+v, metric %+v", r, m)
		}
	}
	if cutoff, err := time.Parse(time.RFC3339, m.Cutoff); f.strike != nil && (err != nil || cutoff.After(struck)) {
		t.Errorf("the cut-off is %s, and the fault came at %s: it must not move", m.Cutoff, struck)
	}
	// A statement whose connection is gone still runs for a moment.
	s.relay.Heal()
	s.untilQuiet(t)
	before := s.gone(t)
	switch {
	case f.undoes: // rows that come back are deleted and counted again
		if m.DeletedRows <= before || m.DeletedRows > 2*before {
			t.Errorf("published %d, %d rows left the table: some must have left twice", m.DeletedRows, before)
		}
	default:
		s.count(t, 0, m.DeletedRows, faultBatch, f.lost)
	}
	s.count(t, before, s.drain(t, s.start(t)), faultBatch, 0)
	if gone := s.gone(t); gone != faultExpired {
		t.Errorf("%d rows have left, want all %d", gone, faultExpired)
	}
}

// terminate ends the function's sessions, as an operator would.
func (s *scene) terminate(t *testing.T) {
	t.Helper()
	s.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'edfi-token-purge'")
}

// failOver is a failover as Aurora makes it: the same data at another address.
func failOver(t *testing.T, s *scene) {
	t.Helper()
	promoted, err := relay.New(s.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { promoted.Close() })
	s.relay.Refuse()
	s.relay.Reset()
	time.Sleep(500 * time.Millisecond)
	s.relay.PointTo(fmt.Sprintf("127.0.0.1:%d", promoted.Port()))
	s.relay.Heal()
	t.Cleanup(func() {
		if connections, _ := promoted.Counts(); connections == 0 {
			t.Error("the new address was never asked")
		}
	})
}

// untilQuiet waits until the server has ended the function's statements.
func (db database) untilQuiet(t *testing.T) {
	t.Helper()
	for busy := true; busy; {
		err := db.conn.QueryRow(t.Context(), `
SELECT EXISTS (SELECT FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'edfi-token-purge' AND state <> 'idle')`).Scan(&busy)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestASilentDatabaseIsAnErrorWithinTenSeconds(t *testing.T) {
	t.Parallel()
	s := newScene(t, stage, 10, "CONNECT_TIMEOUT=1s")
	s.relay.Silence()
	reply, lines := s.function.invoke(t, `{}`)
	expectError(t, reply, "PurgeFailed", "does not serve yet")
	if m := oneMetric(t, lines); m.Failures != 1 || m.DeletedRows != 0 || m.Duration > 10_000 {
		t.Errorf("%+v", m)
	}
	if gone := s.gone(t); gone != 0 {
		t.Errorf("%d rows are gone", gone)
	}
}

// Invoke returns an error for a function that is killed. That the last look leaves time as
// well is tested in package postgres.
func TestTheFunctionAnswersInTimeWheneverTheNetworkFallsSilent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		at        string // in what is sent to the server
		databases string // "" is one that is named
		stop      string // STOP_BEFORE
		time      time.Duration
	}{
		"the log-in":                        {"user", "", "1s", 3 * time.Second},
		"the list":                          {"FROM pg_database", "*", "1s", 3 * time.Second},
		"the list, with less than it needs": {"FROM pg_database", "*", "20s", 3 * time.Second},
		"examining":                         {"server_version_num", "", "1s", 3 * time.Second},
		"the first look":                    {"min(expiration)", "", "1s", 3 * time.Second},
		"a batch":                           {"DELETE FROM", "", "1s", 3 * time.Second},
		"the closing":                       {"pg_advisory_unlock", "", "1s", 3 * time.Second},
		"examining, with more time":         {"server_version_num", "", "5s", 7 * time.Second},
		"a batch, with more time":           {"DELETE FROM", "", "5s", 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, stage, 5000)
			s.relay.SilenceAt(relay.ToServer, c.at)
			f := start(t, "SECRET_ID="+s.secret, "STOP_BEFORE="+c.stop, "BATCH_SIZE=50", "DATABASES="+cmp.Or(c.databases, s.name))
			<-f.Polled() // the start of a process is not what is tried here
			reply, lines, err := f.Invoke(t.Context(), `{}`, c.time)
			if err != nil || len(metrics(t, lines)) != 1 {
				t.Fatalf("%v\n%s", err, lines)
			}
			if reply.Error == nil && parse(t, reply).Status == purge.Complete {
				t.Errorf("%s", reply.Payload)
			}
		})
	}
}

func TestADatabaseWhoseClockIsOffIsNotPurged(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{6 * time.Minute, -6 * time.Minute, 4 * time.Minute} {
		db := newDatabase(t, 30, 3)
		// Another clock in place of the database's own.
		db.exec(t, `
CREATE FUNCTION dbo.clock() RETURNS timestamptz LANGUAGE internal AS 'clock_timestamp';
CREATE OR REPLACE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT dbo.clock() + interval '`+off.String()+`' $$`)
		db.guarded(t, db.start(t), off)
	}
}

func TestAServerWhoseClockIsOffIsNotPurged(t *testing.T) {
	// Only faketime's library is used: its command would be a process between the test
	// and the server.
	library, err := exec.Command("faketime", "-f", "+0", "printenv", "LD_PRELOAD").Output()
	if err != nil {
		t.Skip("NO SERVER'S OWN CLOCK IS SET: faketime is not installed")
	}
	for _, off := range []time.Duration{6 * time.Minute, 4 * time.Minute} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			on := ownStage(t, "LD_PRELOAD="+strings.TrimSpace(string(library)), fmt.Sprintf("FAKETIME=+%.0f", off.Seconds()))
			db := newOn(t, on, "EdFi_Admin", 30, 3)
			id := "clock/server/" + off.String()
			stage.Secrets.Put(id, on.Secret(on.Postgres.Password))
			db.guarded(t, db.start(t, "SECRET_ID="+id), off)
		})
	}
}

// guarded checks that f purges a database whose clock is off by this, or refuses to
// where that is more than it may be.
func (db database) guarded(t *testing.T, f function, off time.Duration) {
	t.Helper()
	begin := time.Now()
	reply, lines := f.invoke(t, `{}`)
	m := oneMetric(t, lines)
	if off.Abs() < purge.MaxClockSkew {
		if r := db.result(t, reply); r.Status != "complete" || r.DeletedRows != 30 {
			t.Errorf("%s: %+v", off, r)
		}
		return
	}
	expectError(t, reply, "PurgeFailed", "clock-skew")
	if m.Failures != 1 || m.DeletedRows != 0 {
		t.Errorf("%s: %+v", off, m)
	}
	db.expect(t, 30, 3)
	if reply.Error == nil {
		return
	}
	var clocks []time.Time
	for _, text := range regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`).FindAllString(reply.Error.Message, -1) {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		clocks = append(clocks, at)
	}
	between := func(at time.Time, off time.Duration) bool { // one second is for times without fractions
		return !at.Before(begin.Add(off-time.Second)) && !at.After(time.Now().Add(off))
	}
	if len(clocks) != 2 || !between(clocks[0], off) || !between(clocks[1], 0) {
		t.Errorf("%s: both clocks, the database's first, must be in %q", off, reply.Error.Message)
	}
}
