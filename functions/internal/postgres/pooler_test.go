package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/relay"
)

// pool starts a PgBouncer in front of the server, and returns the way through it.
func pool(t *testing.T, s stage, settings map[string]string) Server {
	t.Helper()
	pooler, err := server.StartPooler(t.Context(), settings, map[string]string{s.role: password})
	if errors.Is(err, pgserver.ErrNoPooler) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pooler.Stop(); err != nil {
			t.Log(err)
		}
	})
	through := s.server()
	through.Host, through.Port = pooler.Host, pooler.Port
	return through
}

// client connects to the database by way of the pool.
func client(t *testing.T, through Server, database string) *pgx.Conn {
	t.Helper()
	config, err := defaults()
	if err != nil {
		t.Fatal(err)
	}
	config.Host, config.Port, config.Database = through.Host, through.Port, database
	config.User, config.Password = through.User.Reveal(), through.Password.Reveal()
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// others are clients of the same pool that come and go in short transactions, and look
// whether anything of ours is in the session that they get.
func others(t *testing.T, through Server, database string, clients int) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for n := range clients {
		conn := client(t, through, database)
		all.Go(func() {
			for ctx.Err() == nil {
				// A name may be listened to for some milliseconds, which nobody else notifies.
				if found := listening.ReplaceAllString(leftBehind(conn), ""); found != "" {
					t.Error("another client met ", found)
					return
				}
				time.Sleep(time.Duration(n) * time.Millisecond)
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

var listening = regexp.MustCompile(`edfi_token_purge_[0-9A-Z]+`)

const leftovers = `
SELECT coalesce((SELECT string_agg(name || '=' || setting, ' ') FROM pg_settings
                 WHERE source = 'session' AND setting <> reset_val AND name <> 'application_name'), '')
    || coalesce((SELECT string_agg(name, ' ') FROM pg_prepared_statements), '')
    || coalesce((SELECT string_agg(channel, ' ') FROM pg_listening_channels() AS channel), '')
    || coalesce((SELECT string_agg('lock ' || objid, ' ') FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), '')`

// leftBehind tells what of ours is in the session that conn has now; "" is nothing.
// What a pooler itself sets for its client is compared with what the server has.
func leftBehind(conn *pgx.Conn) (found string) {
	err := conn.QueryRow(context.Background(), leftovers).Scan(&found)
	if err != nil {
		return err.Error()
	}
	return found
}

// searchPool looks into every session that the pool has, up to so many, by holding
// them at once.
func searchPool(t *testing.T, through Server, database string, sessions int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range sessions {
		conn := client(t, through, database)
		if tx, err := conn.Begin(ctx); err == nil {
			defer tx.Rollback(ctx) //nolint:errcheck // it only read
		} else { // statement pooling: no two at once
			conn = client(t, through, database)
		}
		if found := leftBehind(conn); found != "" {
			t.Error("left behind: ", found)
		}
	}
}

func TestPgBouncerInSessionModeServesARunAndNothingIsLeftBehind(t *testing.T) {
	s := newStage(t, "purge_session_pool", "")
	for name, settings := range map[string]map[string]string{
		"as it comes":                {},
		"without server_reset_query": {"server_reset_query": ""},
		"that ignores settings":      {"server_reset_query": "", "ignore_startup_parameters": "statement_timeout,transaction_timeout"},
		"that takes turns":           {"server_reset_query": "", "server_round_robin": "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := s.create(t)
			for range 5 {
				db.Insert(t, db.Now(t).Add(-time.Hour), db.Now(t).Add(time.Hour))
			}
			settings := maps.Clone(settings)
			settings["pool_mode"] = "session"
			through := pool(t, s, settings)
			stop := others(t, through, db.name, 3)
			for _, want := range []int64{5, 0} {
				if r := run(t, through, db.name); r.Status != purge.Complete || r.DeletedRows != want {
					t.Errorf("%+v", r)
				}
			}
			stop()
			searchPool(t, through, db.name, 5)
		})
	}
}

func TestAPoolWithNoSessionToSpareServesARunInSessionMode(t *testing.T) {
	s := newStage(t, "purge_small_pool", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	through := pool(t, s, map[string]string{"pool_mode": "session", "default_pool_size": "1", "server_reset_query": ""})
	if r := run(t, through, db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
		t.Errorf("%+v", r)
	}
	if found := leftBehind(client(t, through, db.name)); found != "" {
		t.Error(found)
	}
}

func TestPgBouncerThatSharesSessionsIsRefusedAndNothingIsLeftBehind(t *testing.T) {
	s := newStage(t, "purge_shared_pool", "")
	for _, mode := range []string{"transaction", "statement"} {
		for name, settings := range map[string]map[string]string{
			"as it comes":                    {},
			"that takes turns":               {"server_round_robin": "1"},
			"that ignores settings":          {"ignore_startup_parameters": "statement_timeout"},
			"with one session":               {"default_pool_size": "1"},
			"that has two sessions by turns": {"min_pool_size": "2", "default_pool_size": "2", "server_round_robin": "1"},
		} {
			for _, beside := range []int{0, 3} {
				t.Run(fmt.Sprintf("%s/%s/%d others", mode, name, beside), func(t *testing.T) {
					t.Parallel()
					db := s.create(t)
					db.Insert(t, db.Now(t).Add(-time.Hour))
					settings := maps.Clone(settings)
					settings["pool_mode"] = mode
					sessions := 5
					if size, limited := settings["default_pool_size"]; limited {
						sessions, _ = strconv.Atoi(size)
					}
					through := pool(t, s, settings)
					stop := others(t, through, db.name, beside)
					for range 2 {
						for _, action := range []purge.Action{purge.Purge, purge.DryRun, purge.Check} {
							r := act(t, through, db.name, action)
							if r.Status != purge.Failed || len(r.Findings) != 1 || r.Findings[0].Code != "transaction-pooler" || r.DeletedRows != 0 {
								t.Errorf("%s: %+v", action, r)
							}
						}
					}
					stop()
					searchPool(t, through, db.name, sessions)
				})
			}
		}
	}
}

// balanced is a port behind which several poolers are. Each connection goes to the one
// that choose names, given how many connections each has.
func balanced(t *testing.T, choose func(open []int) int, poolers ...Server) Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var mu sync.Mutex
	open := make([]int, len(poolers))
	count := func(by int, to *int) int {
		mu.Lock()
		defer mu.Unlock()
		if to == nil {
			chosen := choose(open)
			to = &chosen
		}
		open[*to] += by
		return *to
	}
	pass := func(conn net.Conn) {
		defer conn.Close()
		to := count(1, nil)
		defer count(-1, &to)
		pooler, err := net.Dial("tcp", net.JoinHostPort(poolers[to].Host, strconv.Itoa(int(poolers[to].Port))))
		if err != nil {
			return
		}
		defer pooler.Close()
		go func() { io.Copy(pooler, conn); pooler.Close() }() //nolint:errcheck // it has ended
		io.Copy(conn, pooler)                                 //nolint:errcheck // the same
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go pass(conn)
		}
	}()
	through := poolers[0]
	through.Host, through.Port = "127.0.0.1", uint16(l.Addr().(*net.TCPAddr).Port)
	return through
}

// choices are how a balancer chooses among two. By the fewest connections the first one of a
// run and the second one never meet.
var choices = map[string]func() func(open []int) int{
	"by the fewest connections": func() func([]int) int {
		return func(open []int) int {
			if open[1] < open[0] {
				return 1
			}
			return 0
		}
	},
	"in turns": func() func([]int) int {
		nth := 0
		return func([]int) int { nth++; return nth % 2 }
	},
	"at random": func() func([]int) int {
		random := rand.New(rand.NewPCG(1, 2))
		return func([]int) int { return random.IntN(2) }
	},
}

// Two poolers behind one port, that share sessions and have no session in common.
func TestTwoPoolersBehindOnePortAreToldForWhatTheyAre(t *testing.T) {
	s := newStage(t, "purge_two_pools", "")
	for _, mode := range []string{"session", "transaction", "statement"} {
		for name, way := range choices {
			for _, beside := range []int{0, 2} {
				t.Run(fmt.Sprintf("%s/%s/%d others", mode, name, beside), func(t *testing.T) {
					t.Parallel()
					db := s.create(t)
					db.Insert(t, db.Now(t).Add(-time.Hour))
					settings := map[string]string{"pool_mode": mode, "server_reset_query": ""}
					one, two := pool(t, s, settings), pool(t, s, settings)
					through := balanced(t, way(), one, two)
					stop := others(t, through, db.name, beside)
					for _, action := range []purge.Action{purge.DryRun, purge.Check, purge.Purge} {
						r := act(t, through, db.name, action)
						served := r.Status == purge.Complete && (action != purge.Purge || r.DeletedRows == 1)
						refused := r.Status == purge.Failed && len(r.Findings) == 1 && r.Findings[0].Code == "transaction-pooler" && r.DeletedRows == 0
						if mode == "session" && !served || mode != "session" && !refused {
							t.Errorf("%s: %+v", action, r)
						}
					}
					stop()
					searchPool(t, one, db.name, 5)
					searchPool(t, two, db.name, 5)
				})
			}
		}
	}
}

// A notification that is late is no proof of anything: the way to the session is slower
// than that to the one that sends it.
func TestASlowWayToASessionIsNoSharedOne(t *testing.T) {
	s := newStage(t, "purge_slow_pool", "")
	for _, mode := range []string{"session", "transaction"} {
		for far := range 2 {
			t.Run(fmt.Sprintf("%s/%d", mode, far), func(t *testing.T) {
				t.Parallel()
				db := s.create(t)
				db.Insert(t, db.Now(t).Add(-time.Hour))
				settings := map[string]string{"pool_mode": mode, "server_reset_query": ""}
				poolers := []Server{pool(t, s, settings), pool(t, s, settings)}
				slow, err := relay.New(net.JoinHostPort(poolers[far].Host, strconv.Itoa(int(poolers[far].Port))))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { slow.Close() })
				slow.Delay(100 * time.Millisecond)
				ways := slices.Clone(poolers)
				ways[far].Host, ways[far].Port = "127.0.0.1", slow.Port()
				r := run(t, balanced(t, choices["by the fewest connections"](), ways...), db.name)
				if want := map[string]purge.Status{"session": purge.Complete, "transaction": purge.Failed}[mode]; r.Status != want {
					t.Errorf("%+v", r)
				}
				for _, through := range poolers {
					searchPool(t, through, db.name, 5)
				}
			})
		}
	}
}

// A second connection that is slow waits for no session.
func TestASlowWayToOnePoolHidesNothing(t *testing.T) {
	s := newStage(t, "purge_far_pool", "")
	for mode, want := range map[string]purge.Status{"session": purge.Complete, "transaction": purge.Failed, "statement": purge.Failed} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			db := s.create(t)
			one := pool(t, s, map[string]string{"pool_mode": mode, "server_reset_query": ""})
			slow, err := relay.New(net.JoinHostPort(one.Host, strconv.Itoa(int(one.Port))))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { slow.Close() })
			slow.Delay(250 * time.Millisecond)
			far := one
			far.Host, far.Port, far.ConnectTimeout = "127.0.0.1", slow.Port(), time.Minute
			if r := act(t, far, db.name, purge.DryRun); r.Status != want {
				t.Errorf("%+v", r)
			}
			searchPool(t, one, db.name, 5)
		})
	}
}

// What the pooler itself says in one code for everything.
func TestWhatPgBouncerSaysIsUnderstood(t *testing.T) {
	s := newStage(t, "purge_pool_words", "")
	db := s.create(t)
	open := func(through Server, name string) error {
		conn, err := through.Open(t.Context(), name, purge.ClientAccessTokens, true)
		if err == nil {
			conn.Close()
		}
		return err
	}
	full := pool(t, s, map[string]string{"pool_mode": "session", "max_client_conn": "3"})
	for range 3 { // one may have to wait until it is known that the pooler's start was a success
		for {
			conn := &conn{server: full, database: db.name}
			defer conn.Close()
			if conn.connect(t.Context()) == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := open(full, db.name); !errors.Is(err, purge.ErrNoSlot) {
		t.Errorf("a pooler without a connection to spare: %v", err)
	}
	waits := pool(t, s, map[string]string{"pool_mode": "session", "default_pool_size": "1", "query_wait_timeout": "1"})
	must(t, client(t, waits, db.name), "SELECT 1")
	if err := open(waits, db.name); !errors.Is(err, purge.ErrNoSlot) {
		t.Errorf("a pool without a session to spare: %v", err)
	}
	through := pool(t, s, map[string]string{"pool_mode": "session"})
	err := open(through, "no_such_database")
	if unfit, _ := errors.AsType[purge.NotPurgeable](err); unfit.Kind.Code != "no-database" {
		t.Errorf("a database that is not there: %v", err)
	}
	wrong := through
	wrong.Password = through.User
	if err := open(wrong, db.name); !errors.Is(err, purge.ErrLogin) {
		t.Errorf("a wrong password: %v", err)
	}
}

// A pooler that showed itself in mid-run alone: the session is not the run's any more.
func TestNothingIsSetInASessionOfSomebodyElses(t *testing.T) {
	s := newStage(t, "purge_other_session", "")
	db := s.create(t)
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	c := opened.(*conn)
	c.facts.backend++
	const limit = "SHOW lock_timeout"
	before := one[string](t, c.pg, limit)
	if _, _, err := c.Oldest(t.Context(), c.Expired(time.Time{}, time.Now()), purge.Trail{}); !errors.Is(err, errPooled) {
		t.Errorf("a look: %v", err)
	}
	cut := purge.Batch{Window: c.Expired(time.Time{}, time.Now())}
	if _, err := c.Delete(t.Context(), cut); !errors.Is(err, errPooled) {
		t.Errorf("a batch: %v", err)
	}
	if after := one[string](t, c.pg, limit); after != before || one[int](t, c.pg, "SELECT count(*) FROM pg_prepared_statements") != 0 {
		t.Errorf("lock_timeout was %s, is %s", before, after)
	}
}
