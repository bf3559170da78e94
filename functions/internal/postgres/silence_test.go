package postgres

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/relay"
)

// falling is a server behind a network that swallows everything from a phase of the run on.
type falling struct {
	Server
	network *relay.Relay
	phase   string
	fell    atomic.Bool
	looks   atomic.Int32
}

func (f *falling) at(phase string) {
	if phase == f.phase && !f.fell.Swap(true) {
		f.network.Silence()
	}
}

func (f *falling) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	f.at("the log-in")
	opened, err := f.Server.Open(ctx, database, table, lock)
	if err != nil {
		return nil, err
	}
	return &fallingConn{opened.(*conn), f}, nil
}

type fallingConn struct {
	*conn
	f *falling
}

func (c *fallingConn) OldestWith(ctx context.Context, others []purge.Conn, w purge.Window, trail purge.Trail) (time.Time, purge.Window, error) {
	c.f.at([]string{"the first look", "the last look"}[min(c.f.looks.Add(1), 2)-1]) // there is more to do than time
	return c.conn.OldestWith(ctx, others, w, trail)
}

func (c *fallingConn) Cut(ctx context.Context, w purge.Window, size, batches int) ([]purge.Batch, purge.Window, error) {
	c.f.at("a cut")
	return c.conn.Cut(ctx, w, size, batches)
}

func (c *fallingConn) Delete(ctx context.Context, b purge.Batch) (purge.Deleted, error) {
	c.f.at("a batch")
	return c.conn.Delete(ctx, b)
}

func (c *fallingConn) DeleteAll(ctx context.Context, first purge.Batch, next func() (purge.Batch, bool), done func(purge.Deleted, error)) {
	c.f.at("a batch")
	c.conn.DeleteAll(ctx, first, next, done)
}

func (c *fallingConn) Close() {
	c.f.at("the closing")
	c.conn.Close()
}

func TestASilentNetworkLeavesTimeForTheAnswer(t *testing.T) {
	t.Parallel()
	const stopBefore = time.Second
	s := newStage(t, "edfi_silent", "")
	for _, phase := range []string{"the log-in", "examining", "the first look", "a cut", "a batch", "the last look", "the closing"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			db := s.create(t)
			must(t, db.conn, "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), now() - n * interval '1 minute' FROM generate_series(1, 1000) AS n")
			db.Delay(t, 20*time.Millisecond)
			network, err := relay.New(net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { network.Close() })
			if phase == "examining" {
				network.SilenceAt(relay.ToServer, "server_version_num")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second+stopBefore)
			defer cancel()
			there := &falling{Server: s.server(), network: network, phase: phase}
			there.Host, there.Port, there.Linger, there.ConnectTimeout = "127.0.0.1", network.Port(), stopBefore/8, time.Minute
			where := purge.Target{Engine: there, Tables: []purge.Table{purge.ClientAccessTokens}, Databases: []purge.Database{{Name: db.name}}, Log: quiet}
			p := purge.Policy{Action: purge.Purge, BatchSize: 50, BatchTarget: 50 * time.Millisecond, StopBefore: stopBefore, ConnectTimeout: time.Minute}
			r := purge.Run(ctx, where, p, func(purge.DatabaseResult) {}).Databases[0]
			if ctx.Err() != nil || r.Status == purge.Complete || r.Status == purge.Skipped {
				t.Errorf("%v, %+v", ctx.Err(), r)
			}
			if phase != "examining" && !there.fell.Load() {
				t.Error("the network did not fall silent")
			}
		})
	}
}
