package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/relay"
)

// login logs in with the adapter's own settings and nothing else.
func login(t *testing.T, to Server, database string) *pgx.Conn {
	t.Helper()
	config, err := (&conn{server: to, database: database}).config()
	if err != nil {
		t.Fatal(err)
	}
	pg, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return pg
}

// holdingCancel stands in front of the server and passes on no request to cancel. It
// says how the first one ended: given up by the client or, a while after the server
// said anything else, here.
func holdingCancel(t *testing.T, to Server) (through Server, givenUp <-chan bool) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	const cancelCode = 80877102
	behind := net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port)))
	result, requested, said := make(chan bool, 1), make(chan struct{}), make(chan struct{})
	hold := func(client net.Conn) {
		close(requested)
		go func() {
			<-said
			time.Sleep(300 * time.Millisecond)
			client.SetReadDeadline(time.Now())
		}()
		_, err := client.Read(make([]byte, 1))
		result <- errors.Is(err, io.EOF)
	}
	pass := func(client net.Conn, head []byte) {
		server, err := net.Dial("tcp", behind)
		if err != nil {
			t.Error(err)
			return
		}
		defer server.Close()
		go func() {
			server.Write(head)
			io.Copy(server, client)
			server.Close()
		}()
		buffer := make([]byte, 1<<10)
		for told := false; ; {
			n, err := server.Read(buffer)
			if err != nil {
				return
			}
			client.Write(buffer[:n])
			select {
			case <-requested:
				if !told {
					told = true
					close(said)
				}
			default:
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				head := make([]byte, 8)
				if _, err := io.ReadFull(client, head); err != nil {
					return
				}
				if binary.BigEndian.Uint32(head[4:]) == cancelCode {
					io.ReadFull(client, make([]byte, 8)) // which process, and its secret
					hold(client)
				} else {
					pass(client, head)
				}
			}()
		}
	}()
	to.Port = uint16(listener.Addr().(*net.TCPAddr).Port)
	return to, result
}

func TestARequestToCancelIsNotGivenUpWhenTheStatementEnds(t *testing.T) {
	s := newStage(t, "purge_cancel_held", "")
	db := s.create(t)
	through, givenUp := holdingCancel(t, s.server())
	pg := login(t, through, db.name)
	defer pg.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	pg.Exec(ctx, "SELECT pg_sleep(0.5)") //nolint:errcheck // it ends or is given up
	if <-givenUp {
		t.Error("the request's connection was closed ahead of the server's")
	}
}

// At a client that gives up a request to cancel, a PgBouncer of these versions ends.
func TestPgBouncerSurvivesStatementsThatEndAsTheyAreCanceled(t *testing.T) {
	s := newStage(t, "purge_cancel_pooled", "")
	db := s.create(t)
	through := pool(t, s, map[string]string{"pool_mode": "session"})
	var all sync.WaitGroup
	for range 12 {
		pg := login(t, through, db.name)
		all.Go(func() {
			defer func() { pg.Close(context.Background()) }()
			for range 20 {
				if pg.IsClosed() { // the machine was slow, or the pooler is gone
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(6+rand.IntN(8))*time.Millisecond)
				pg.Exec(ctx, "SELECT pg_sleep(0.01)") //nolint:errcheck // both is well
				cancel()
			}
		})
	}
	all.Wait()
	login(t, through, db.name).Close(context.Background()) //nolint:errcheck // it could log in
}

// The limits of batches hold also while those of the next look are set. Where the server is
// slow at that moment, a run goes on: it has all the time that there is.
func TestASlowMomentBetweenStatementsEndsNoRun(t *testing.T) {
	s := newStage(t, "slow_moment", "")
	db := filled(t, s)
	between, err := relay.New(net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
	if err != nil {
		t.Fatal(err)
	}
	defer between.Close()
	through := s.server()
	through.Host, through.Port, through.Longest = "127.0.0.1", between.Port(), time.Second
	const setting = "set_config('statement_timeout', $1, false)"
	sleeping := fmt.Sprintf("%-*s", len(setting), "pg_sleep(1000)::text || $1")
	met := make(chan struct{}, 1)
	r := purgeWith(t.Context(), t, through, db.name, purge.Policy{BatchSize: 1000}, func() {
		between.Change(func(way relay.Way, data []byte) []byte {
			if way == relay.ToServer && strings.Contains(string(data), setting) {
				select {
				case met <- struct{}{}:
					return []byte(strings.ReplaceAll(string(data), setting, sleeping))
				default:
				}
			}
			return data
		})
	})
	if expired, _ := db.counts(t); r.Status != purge.Complete || r.DeletedRows != rows || expired != 0 || len(met) == 0 {
		t.Errorf("%+v, %d expired left, %d slow moments", r, expired, len(met))
	}
}
