package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/relay"

	"github.com/jackc/pgx/v5"
)

// ownServer starts a server that a test may stop, with one database.
func ownServer(t *testing.T, o pgserver.Options) (*pgserver.Server, Server, *pgx.Conn) {
	t.Helper()
	o.Own = true
	if o.Settings == nil {
		o.Settings = map[string]string{}
	}
	o.Settings["fsync"] = "off"
	own, err := pgserver.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Stop() }) //nolint:errcheck // the test has spoken
	admin, err := pgx.Connect(t.Context(), own.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(context.Background()) })
	if err := edfi.CreateSchema(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	s := Server{Host: own.Host, Port: own.Port, User: redact.NewSecret(own.User), Password: redact.NewSecret(own.Password), LockTimeout: time.Second}
	return own, s, admin
}

// signal sends one to the server's first process.
func signal(t *testing.T, admin *pgx.Conn, which syscall.Signal) (send func(syscall.Signal)) {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(one[string](t, admin, "SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)")))
	if err != nil {
		t.Fatal(err)
	}
	send = func(s syscall.Signal) {
		if err := syscall.Kill(pid, s); err != nil {
			t.Error(err)
		}
	}
	send(which)
	return send
}

// opened opens the database and closes it again.
func opened(ctx context.Context, s Server, name string) error {
	conn, err := s.Open(ctx, name, purge.ClientAccessTokens, true)
	if err == nil {
		conn.Close()
	}
	return err
}

func TestAServerThatShutsDownOrStartsIsNotYet(t *testing.T) {
	t.Parallel()
	_, s, admin := ownServer(t, pgserver.Options{})
	signal(t, admin, syscall.SIGTERM) // it waits for its sessions, and lets nobody in: 57P03, as while it starts
	for {
		err := opened(t.Context(), s, "postgres")
		if err == nil { // before the signal came
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if !errors.Is(err, purge.ErrNotYet) || !errors.Is(err, purge.ErrLost) || errors.Is(err, purge.ErrUnreached) || !strings.Contains(err.Error(), "57P03") {
			t.Error(err)
		}
		return
	}
}

func TestAServerThatTakesConnectionsIsWaitedForUntilItServes(t *testing.T) {
	t.Parallel()
	_, s, admin := ownServer(t, pgserver.Options{})
	send := signal(t, admin, syscall.SIGSTOP) // the system takes connections for it
	defer send(syscall.SIGCONT)
	start := time.Now()
	err := opened(t.Context(), s, "postgres")
	if took := time.Since(start); !errors.Is(err, purge.ErrNotYet) || errors.Is(err, purge.ErrUnreached) || took < connectTimeout {
		t.Errorf("without CONNECT_TIMEOUT, after %s: %v", took, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := opened(ctx, s, "postgres"); !errors.Is(err, purge.ErrNotYet) {
		t.Errorf("with less time: %v", err)
	}
	s.ConnectTimeout = 5 * time.Minute
	time.AfterFunc(connectTimeout+time.Second, func() { send(syscall.SIGCONT) })
	if err := opened(t.Context(), s, "postgres"); err != nil {
		t.Errorf("once it serves: %v", err)
	}
}

func TestARelayWithNobodyBehindItIsNotYet(t *testing.T) {
	s := newStage(t, "purge_relayed", "")
	db := s.create(t)
	between, err := relay.New(net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
	if err != nil {
		t.Fatal(err)
	}
	defer between.Close()
	ends, err := net.Listen("tcp", "127.0.0.1:0") // in order, where the relay resets
	if err != nil {
		t.Fatal(err)
	}
	defer ends.Close()
	go func() {
		for {
			conn, err := ends.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	between.Refuse()
	for name, port := range map[string]int{"reset": int(between.Port()), "ended": ends.Addr().(*net.TCPAddr).Port} {
		for _, encrypted := range []*tls.Config{nil, {InsecureSkipVerify: true}} {
			through := s.server()
			through.Host, through.Port, through.TLS = "127.0.0.1", uint16(port), encrypted
			if err := opened(t.Context(), through, db.name); !errors.Is(err, purge.ErrNotYet) || errors.Is(err, purge.ErrUnreached) {
				t.Errorf("%s, TLS %t: %v", name, encrypted != nil, err)
			}
		}
	}
	between.Heal()
	// Cut where the server has answered already: at any byte of the log-in and of the
	// first statements.
	through := s.server()
	through.Host, through.Port = "127.0.0.1", between.Port()
	for _, way := range []relay.Way{relay.ToServer, relay.ToClient} {
		for _, n := range []int{1, 40, 100, 300, 700} {
			cuts := between.Cuts()
			between.CutAfter(way, n)
			if err := opened(t.Context(), through, db.name); between.Cuts() > cuts && !errors.Is(err, purge.ErrNotYet) {
				t.Errorf("cut %s after %d bytes: %v", way, n, err)
			}
			between.Heal()
		}
	}
}

// What we cancel ourselves is no lock that others hold.
func TestAnExaminationThatTakesTooLongIsNotYet(t *testing.T) {
	s := newStage(t, "purge_examined", "")
	db := s.create(t)
	must(t, db.conn, "BEGIN; LOCK TABLE pg_publication IN ACCESS EXCLUSIVE MODE")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := opened(ctx, s.server(), db.name); !errors.Is(err, purge.ErrNotYet) {
		t.Error(err)
	}
	must(t, db.conn, "ROLLBACK")
}

func TestAPoolerWhoseServerIsAwayIsNotYet(t *testing.T) {
	t.Parallel()
	own, s, _ := ownServer(t, pgserver.Options{})
	pooler, err := own.StartPooler(t.Context(), map[string]string{"pool_mode": "session", "server_login_retry": "1"}, map[string]string{own.User: own.Password})
	if errors.Is(err, pgserver.ErrNoPooler) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer pooler.Stop() //nolint:errcheck // the test has spoken
	s.Host, s.Port = pooler.Host, pooler.Port
	if err := opened(t.Context(), s, "postgres"); err != nil {
		t.Fatal(err)
	}
	own.Stop() //nolint:errcheck // what follows tells
	for range 2 {
		if err := opened(t.Context(), s, "postgres"); !errors.Is(err, purge.ErrNotYet) {
			t.Error(err)
		}
	}
}

func TestAHostThatTakesNoConnectionIsReportedInTime(t *testing.T) {
	t.Parallel()
	s := Server{Host: "127.0.0.1", Port: relay.BlackHole(t, "127.0.0.1", 0), ConnectTimeout: 5 * time.Minute}
	start := time.Now()
	err := opened(t.Context(), s, "any")
	if took := time.Since(start); !errors.Is(err, purge.ErrUnreached) || errors.Is(err, purge.ErrNotYet) || took > 2*connectTimeout {
		t.Errorf("after %s: %v", took, err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = uint16(closed.Addr().(*net.TCPAddr).Port)
	closed.Close()
	if err := opened(t.Context(), s, "any"); !errors.Is(err, purge.ErrLost) || errors.Is(err, purge.ErrNotYet) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("refused: %v", err)
	}
	s.Host = "no-such-host.invalid"
	if err := opened(t.Context(), s, "any"); !errors.Is(err, purge.ErrLost) || errors.Is(err, purge.ErrNotYet) || !strings.Contains(err.Error(), s.Host) {
		t.Errorf("a name that is not there: %v", err)
	}
}

func TestEachAddressOfAHostGetsItsTurn(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs more than one loopback address")
	}
	s := newStage(t, "purge_addresses", "")
	db := s.create(t)
	through := s.server()
	relay.BlackHole(t, "127.0.0.2", server.Port)
	for _, ip := range []string{"127.0.0.3", "127.0.0.5"} {
		silent, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(int(server.Port)))) // takes all, says nothing
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { silent.Close() })
	}
	const alive, dead, silent, refuses, mute6 = "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "2001:db8::1"
	for name, addresses := range map[string][]string{
		"dead first":              {dead, alive},
		"dead last":               {alive, dead},
		"two dead":                {dead, "127.0.0.2", alive},
		"one refuses":             {refuses, alive},
		"one takes and is silent": {silent, alive},
		"two are silent":          {silent, "127.0.0.5", alive},
		"IPv6 leads nowhere":      {mute6, alive},
		"all of it":               {mute6, dead, silent, refuses, alive},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through := through
			through.Host, through.resolver = "db.example", relay.Resolver(t, addresses)
			start := time.Now()
			opened, err := through.Open(t.Context(), db.name, purge.ClientAccessTokens, false)
			if err != nil {
				t.Fatal(err)
			}
			opened.Close()
			if took := time.Since(start); took >= connectTimeout {
				t.Errorf("after %s", took)
			}
		})
	}
	for name, c := range map[string]struct {
		addresses []string
		want      error
	}{
		"all dead":                {[]string{dead, dead}, purge.ErrUnreached},
		"one silent, one dead":    {[]string{dead, silent}, purge.ErrNotYet},
		"one silent, one refuses": {[]string{refuses, silent}, purge.ErrNotYet},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through := through
			through.Host, through.resolver = "db.example", relay.Resolver(t, c.addresses)
			if err := opened(t.Context(), through, db.name); !errors.Is(err, c.want) {
				t.Error(err)
			}
		})
	}
}

// A cancel request goes to the address that serves, not to another one of the name.
func TestAStatementIsCanceledAtTheAddressThatRunsIt(t *testing.T) {
	s := newStage(t, "purge_cancel_address", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	db.Delay(t, time.Minute)
	through := s.server()
	through.Host, through.resolver = "db.example", relay.Resolver(t, []string{"127.0.0.4", "127.0.0.1"})
	opened, err := through.Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	cut, _, err := opened.Cut(t.Context(), opened.Expired(time.Time{}, db.Now(t)), 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	time.AfterFunc(500*time.Millisecond, cancel)
	if _, err := opened.Delete(ctx, cut[0]); err == nil {
		t.Error("it was not canceled")
	}
	if n := one[int](t, db.conn, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'purge_cancel_address' AND state = 'active'"); n != 0 {
		t.Errorf("the server still runs %d statements", n)
	}
}

func TestAServerWithNoConnectionToSpareSaysHowManyAreFree(t *testing.T) {
	t.Parallel()
	_, s, admin := ownServer(t, pgserver.Options{Settings: map[string]string{"max_connections": "20", "superuser_reserved_connections": "3"}})
	must(t, admin, `CREATE ROLE few LOGIN PASSWORD 'few'; GRANT USAGE ON SCHEMA dbo TO few; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO few`)
	s.User, s.Password = redact.NewSecret("few"), redact.NewSecret("few")
	for name, c := range map[string]struct {
		limit string
		most  int
	}{
		"of the role":     {"ALTER ROLE few CONNECTION LIMIT 4", 4},
		"of the database": {"ALTER DATABASE postgres CONNECTION LIMIT 5", 4}, // one is the test's own
		"of the server":   {"", 20 - 3 - 1},
	} {
		must(t, admin, c.limit)
		var all []purge.Conn
		for n := 1; ; n++ {
			next, err := s.Open(t.Context(), "postgres", purge.ClientAccessTokens, false)
			if errors.Is(err, purge.ErrNoSlot) && errors.Is(err, purge.ErrLost) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			all = append(all, next)
			if free, err := next.(purge.SlotCounter).FreeSlots(t.Context()); err != nil || free != c.most-n {
				t.Errorf("%s: %d free beside %d, want %d: %v", name, free, n, c.most-n, err)
			}
		}
		if len(all) != c.most {
			t.Errorf("%s: %d connections, want %d", name, len(all), c.most)
		}
		for _, conn := range all {
			conn.Close()
		}
		must(t, admin, "ALTER ROLE few CONNECTION LIMIT -1; ALTER DATABASE postgres CONNECTION LIMIT -1")
		for one[int](t, admin, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'few'") > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func TestAWriterThatBecomesAReaderIsALostConnection(t *testing.T) {
	t.Parallel()
	own, s, admin := ownServer(t, pgserver.Options{})
	must(t, admin, "CREATE ROLE writer LOGIN PASSWORD 'writer'; GRANT USAGE ON SCHEMA dbo TO writer; GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO writer")
	s.User, s.Password = redact.NewSecret("writer"), redact.NewSecret("writer")
	if err := edfi.Fill(t.Context(), admin, edfi.FillOptions{Expired: 100}, nil); err != nil {
		t.Fatal(err)
	}
	writer, err := s.Open(t.Context(), "postgres", purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	cut, _, err := writer.Cut(t.Context(), writer.Expired(time.Time{}, time.Now()), 40, 2)
	if err != nil || len(cut) != 2 {
		t.Fatal(cut, err)
	}
	must(t, admin, "ALTER SYSTEM SET default_transaction_read_only = on")
	must(t, admin, "SELECT pg_reload_conf()")
	for one[string](t, writer.(*conn).pg, "SHOW default_transaction_read_only") != "on" {
		time.Sleep(10 * time.Millisecond)
	}
	writer.(purge.Pipeliner).DeleteAll(t.Context(), cut[0], following(cut[1:]), func(gone purge.Deleted, err error) {
		if gone.Rows != 0 || !errors.Is(err, purge.ErrLost) || !errors.Is(err, purge.ErrUncommitted) || !strings.Contains(err.Error(), "reader") {
			t.Errorf("%+v, %v", gone, err)
		}
	})
	unfit, _ := errors.AsType[purge.NotPurgeable](opened(t.Context(), s, "postgres"))
	if unfit.Kind.Code != "read-only" {
		t.Errorf("a server that is read-only by a setting: %+v", unfit)
	}
	must(t, admin, "SET default_transaction_read_only = off") // ALTER SYSTEM and COPY are fine with either
	must(t, admin, "ALTER SYSTEM RESET default_transaction_read_only")
	must(t, admin, "COPY (SELECT '') TO PROGRAM 'touch standby.signal'")
	if err := own.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	unfit, _ = errors.AsType[purge.NotPurgeable](opened(t.Context(), s, "postgres"))
	if unfit.Kind.Code != "reader-endpoint" || !unfit.Server || !strings.Contains(unfit.Message, "standby") {
		t.Errorf("a standby: %+v", unfit)
	}
	// Reading needs no writer.
	reading, err := s.Open(t.Context(), "postgres", purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	reading.Close()
}
