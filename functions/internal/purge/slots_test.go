package purge

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crowded is a server of which each database has as many connections as limit leaves.
type crowded struct {
	databases map[string]*fake
	limit     int
	falls     int // what it falls to after the first question; 0 is nothing

	mu      sync.Mutex
	open    int
	peak    int // connections that were open at once
	asked   int
	working int // connections that delete
	most    int // of them, at once
}

func newCrowded(databases, limit int) (c *crowded, names []string) {
	c = &crowded{databases: map[string]*fake{}, limit: limit}
	for i := range databases {
		names = append(names, fmt.Sprint("db", i))
		c.databases[names[i]] = &fake{rows: 50, takes: 10 * time.Millisecond}
	}
	return c, names
}

func (c *crowded) Open(ctx context.Context, database string, _ Table, _ bool) (Conn, error) {
	sleep(ctx, time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= c.limit {
		return nil, ErrNoSlot
	}
	c.open++
	c.peak = max(c.peak, c.open)
	return &crowdedConn{fake: c.databases[database], server: c}, nil
}

type crowdedConn struct {
	*fake
	server *crowded
}

// FreeSlots implements [SlotCounter].
func (c *crowdedConn) FreeSlots(ctx context.Context) (int, error) {
	sleep(ctx, time.Millisecond)
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.asked++
	free := c.server.limit - c.server.open
	if c.server.falls > 0 {
		c.server.limit = c.server.falls
	}
	return free, nil
}

func (c *crowdedConn) Delete(ctx context.Context, b Batch) (Deleted, error) {
	c.server.mu.Lock()
	c.server.working++
	c.server.most = max(c.server.most, c.server.working)
	c.server.mu.Unlock()
	defer func() {
		c.server.mu.Lock()
		c.server.working--
		c.server.mu.Unlock()
	}()
	return c.fake.Delete(ctx, b)
}

func (c *crowdedConn) Close() {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.open--
}

func TestAServerWithFewConnectionsToSpareServesFewerDatabasesAtOnce(t *testing.T) {
	for limit, most := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 6: 4, 100: 8} {
		synctest.Test(t, func(t *testing.T) {
			c, names := newCrowded(20, limit)
			r := runAll(t.Context(), c, Policy{BatchSize: 10, Parallel: 8, MaxDuration: time.Hour}, names...)
			if r.Status != Complete || r.DeletedRows != 20*50 || c.open != 0 {
				t.Errorf("limit %d: %s, %d rows, %d connections are left", limit, r.Status, r.DeletedRows, c.open)
			}
			if c.most > most || c.most < min(most, 2) {
				t.Errorf("limit %d: %d databases at once, want at most %d", limit, c.most, most)
			}
			if limit > spareSlots && c.peak == limit { // one that asks may be the last but one
				t.Errorf("limit %d: the last connection was taken", limit)
			}
			if took := time.Duration(r.DurationMs) * time.Millisecond; took > 30*time.Second {
				t.Errorf("limit %d: %s", limit, took)
			}
		})
	}
}

func TestADatabaseThatIsTheOnlyOneAsksForNoSlots(t *testing.T) {
	for _, limit := range []int{1, 100} {
		synctest.Test(t, func(t *testing.T) {
			c, names := newCrowded(1, limit)
			r := runAll(t.Context(), c, Policy{BatchSize: 10, Parallel: 8}, names...)
			if r.Status != Complete || c.asked != 0 {
				t.Errorf("limit %d: %s, asked %d times", limit, r.Status, c.asked)
			}
		})
	}
}

// The API may take them while the run goes on.
func TestADatabaseThatNeverGetsASlotIsPartialAndSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, names := newCrowded(2, 100)
		c.falls = 3
		for _, f := range c.databases {
			f.takes = time.Hour
		}
		r := runAll(t.Context(), c, Policy{BatchSize: 10, Parallel: 2, MaxDuration: time.Minute}, names...)
		waited := 0
		for _, d := range r.Databases {
			if d.Status != Partial || d.StopReason != MaxDuration {
				t.Errorf("%+v", d)
			}
			if slices.ContainsFunc(d.Findings, func(f Finding) bool { return f.Code == NoSlot.Code }) {
				waited++
			}
		}
		if waited != 1 {
			t.Errorf("%d of 2 waited: %+v", waited, r)
		}
	})
}

func TestWhereTheServerHasFewToSpareEachDatabaseGetsItsShareNevertheless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, names := newCrowded(4, 3)
		for _, f := range c.databases {
			f.takes = time.Second
		}
		r := runAll(t.Context(), c, Policy{BatchSize: 10, Parallel: 8, MaxDuration: 12 * time.Second}, names...)
		for _, d := range r.Databases {
			if d.DeletedRows == 0 {
				t.Errorf("%+v", d)
			}
		}
	})
}
