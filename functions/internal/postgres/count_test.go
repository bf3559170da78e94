package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/relay"
)

const (
	countedRows  = 60 // that have expired
	tied         = 5  // of them expired at each instant
	countedLive  = 5
	countedBatch = 7
	cutsTried    = 30 // each way, at random
	stride       = 7919
)

// Two runs and another cleaner delete at once, and the connection of one run is cut. What
// the runs publish is what left, less what the cleaner deleted: to the row, but for one
// batch of which the server said too little before the cut, and that is told. With
// CUT_EVERY=n in the environment there is a cut ahead of each nth message, with one
// connection and with two. That is each byte: neither server nor driver acts on a message
// before it has come to its end.
func TestWhatIsPublishedIsWhatLeftWhereverTheConnectionIsCut(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_counted", "")
	every, _ := strconv.Atoi(os.Getenv("CUT_EVERY")) //nolint:errcheck // none is random
	said := newCounted(t, s, true).said(t)
	var cuts, inexact atomic.Int64
	for way, most := range said {
		for name, trigger := range map[string]bool{"without a trigger": false, "with a trigger": true} {
			var tried atomic.Int64
			next := func() (where cut, connections int, more bool) {
				n := int(tried.Add(1)) - 1
				switch tries := most.messages / max(1, every); {
				case every > 0: // in no order, so that one that is broken off has tried some of all
					return cut{way, n / 2 * stride % tries * every, true}, 1 + n%2, n < 2*tries
				case n%2 > 0:
					return cut{way, rand.N(most.messages), true}, 1 + rand.N(2), n < cutsTried
				default:
					return cut{way, rand.N(most.bytes), false}, 1 + rand.N(2), n < cutsTried
				}
			}
			for i := range 4 {
				t.Run(fmt.Sprintf("%s, %s, %d", way, name, i), func(t *testing.T) {
					t.Parallel()
					c := newCounted(t, s, trigger)
					for where, connections, more := next(); more && !t.Failed(); where, connections, more = next() {
						off, cut := c.purge(t, where, connections)
						if cut {
							cuts.Add(1)
						}
						if off != 0 {
							inexact.Add(1)
						}
					}
				})
			}
		}
	}
	t.Cleanup(func() {
		t.Logf("of what was said, %+v: %d cuts, of which %d left a count inexact", said, cuts.Load(), inexact.Load())
		if cuts.Load() < cutsTried {
			t.Error("too few for anything to be shown")
		}
	})
}

// cut is where a connection is cut: ahead of a message or a byte, by its number.
type cut struct {
	way     relay.Way
	at      int
	message bool
}

func (c cut) on(r *relay.Relay) {
	if !c.message {
		r.CutAfter(c.way, c.at)
		return
	}
	left, links := c.at, links{}
	r.CutWhere(func(link int64, way relay.Way, data []byte) (int, bool) {
		if way != c.way {
			return 0, false
		}
		begin := links.begin(link, way, data)
		if left -= len(begin); left >= 0 {
			return 0, false
		}
		return begin[len(begin)+left], true
	})
}

// links finds where PostgreSQL's messages begin in what goes one way, by connection.
type links map[int64]*messages

// messages is what has come of a connection's.
type messages struct {
	head []byte // of one, until it is whole
	left int    // bytes of the one that goes on
	read int    // whole heads
}

func (l links) begin(link int64, way relay.Way, data []byte) (at []int) {
	m := l[link]
	if m == nil {
		m = &messages{}
		l[link] = m
	}
	for i := 0; i < len(data); {
		if m.left > 0 {
			n := min(m.left, len(data)-i)
			m.left, i = m.left-n, i+n
			continue
		}
		if len(m.head) == 0 {
			at = append(at, i)
		}
		m.head, i = append(m.head, data[i]), i+1
		size := 4
		if way == relay.ToClient || m.read > 0 { // all have a type but the very first
			size++
		}
		if len(m.head) == size {
			m.left, m.read, m.head = int(binary.BigEndian.Uint32(m.head[size-4:]))-4, m.read+1, m.head[:0]
		}
	}
	return at
}

// counted is a database that is purged again and again.
type counted struct {
	database
	cleaner *pgx.Conn
	between *relay.Relay
	direct  Server
	through Server
}

func newCounted(t *testing.T, s stage, trigger bool) *counted {
	t.Helper()
	c := &counted{database: s.create(t), direct: s.server(), through: s.server()}
	c.cleaner = connect(t, c.name)
	if trigger {
		must(t, c.conn, `
CREATE FUNCTION dbo.nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
CREATE TRIGGER nothing BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION dbo.nothing()`)
	}
	var err error
	if c.between, err = relay.New(net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port)))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.between.Close() })
	c.through.Host, c.through.Port = "127.0.0.1", c.between.Port()
	return c
}

// fill gives the table fresh rows.
func (c *counted) fill(t *testing.T) {
	t.Helper()
	must(t, c.conn, fmt.Sprintf(`
TRUNCATE dbo.clientaccesstokens;
INSERT INTO dbo.clientaccesstokens (id, expiration)
SELECT gen_random_uuid(), now() AT TIME ZONE 'utc' - make_interval(mins => 1 + i / %d) FROM generate_series(0, %d) AS i
UNION ALL SELECT gen_random_uuid(), now() AT TIME ZONE 'utc' + '1 hour' FROM generate_series(1, %d)`, tied, countedRows-1, countedLive))
}

// left returns how many rows there are.
func (c *counted) left(t *testing.T) int64 {
	t.Helper()
	return one[int64](t, c.conn, "SELECT count(*) FROM dbo.clientaccesstokens")
}

// extent is how much goes one way in a run.
type extent struct{ messages, bytes int }

// said returns how much there is to say in a run that nobody disturbs.
func (c *counted) said(t *testing.T) map[relay.Way]extent {
	t.Helper()
	c.fill(t)
	said := map[relay.Way]extent{relay.ToServer: {}, relay.ToClient: {}}
	each := map[relay.Way]links{relay.ToServer: {}, relay.ToClient: {}}
	c.between.CutWhere(func(link int64, way relay.Way, data []byte) (int, bool) {
		so := said[way]
		said[way] = extent{so.messages + len(each[way].begin(link, way, data)), so.bytes + len(data)}
		return 0, false
	})
	c.run(t, c.through, 2)
	c.between.Heal()
	return said
}

// run purges with so many connections.
func (c *counted) run(t *testing.T, s Server, connections int) purge.DatabaseResult {
	to := target(s, c.name)
	to.Engine = undisturbed{s}
	return purge.Run(t.Context(), to, purge.Policy{Action: purge.Purge, BatchSize: countedBatch, BatchTarget: time.Minute, Concurrency: connections, ConnectTimeout: 10 * time.Second}, func(purge.DatabaseResult) {}).Databases[0]
}

// purge purges fresh rows while a connection is cut once, and returns by how much the
// count was off.
func (c *counted) purge(t *testing.T, where cut, connections int) (off int64, cut bool) {
	t.Helper()
	c.fill(t)
	before := c.between.Cuts()
	where.on(c.between)
	var published, cleaned atomic.Int64
	run := func(s Server) purge.DatabaseResult {
		r := c.run(t, s, connections)
		published.Add(r.DeletedRows)
		return r
	}
	var all sync.WaitGroup
	var told bool
	all.Go(func() {
		told = strings.Contains(text(run(c.through).Findings), purge.CountUncertain.Code)
	})
	all.Go(func() {
		time.Sleep(rand.N(300 * time.Millisecond))
		run(c.direct)
	})
	all.Go(func() {
		for range rand.N(10) {
			tag, err := c.cleaner.Exec(t.Context(), `
DELETE FROM dbo.clientaccesstokens WHERE id IN (
    SELECT id FROM dbo.clientaccesstokens WHERE expiration < now() AT TIME ZONE 'utc' ORDER BY random() LIMIT 2)`)
			if err == nil { // else there was a deadlock
				cleaned.Add(tag.RowsAffected())
			}
			time.Sleep(rand.N(5 * time.Millisecond))
		}
	})
	all.Wait()
	c.between.Heal()
	cut = c.between.Cuts() > before
	left := c.left(t)
	if left > countedLive { // both were cut short
		run(c.direct)
		left = c.left(t)
	}
	if off = published.Load() + cleaned.Load() - countedRows; left != countedLive || max(off, -off) > countedBatch || off != 0 && !told {
		t.Errorf("%+v with %d connections, cut: %t, told: %t; published %d and another cleaner deleted %d of %d rows; %d of %d live rows are left",
			where, connections, cut, told, published.Load(), cleaned.Load(), countedRows, left, countedLive)
	}
	return off, cut
}

// undisturbed is an engine whose runs don't make way for others, so that they send several
// batches at once.
type undisturbed struct{ Server }

func (u undisturbed) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	opened, err := u.Server.Open(ctx, database, table, lock)
	if err != nil {
		return nil, err
	}
	return deaf{opened.(*conn)}, nil
}

// deaf is a connection whose server does not tell what others write.
type deaf struct{ *conn }

func (deaf) Writes(context.Context) (int64, error) { return 0, nil }

func (d deaf) Facts() purge.Facts {
	facts := d.conn.Facts()
	facts.Writes = 0
	return facts
}

// Of two batches on their way the answer to the first is lost: the one behind it is not
// committed, and the other may be off by its own rows alone.
func TestOfTwoBatchesOnTheirWayOneAtMostIsUncertain(t *testing.T) {
	t.Parallel()
	c := newCounted(t, newStage(t, "purge_two_at_once", ""), false)
	c.Delay(t, 20*time.Millisecond) // so that the second is on its way before the first has ended
	c.fill(t)
	to := target(c.through, c.name)
	to.Engine = undisturbed{c.through}
	var once sync.Once
	to.Deleted = func(string, int64) { // the first batch is alone
		once.Do(func() { c.between.SilenceAt(relay.ToClient, "DELETE 5") })
	}
	var cutting sync.WaitGroup
	cutting.Go(func() {
		for c.left(t) > countedLive+countedRows-2*tied {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond) // what is to follow has the time for it
		c.between.Heal()
		c.between.Reset()
	})
	r := purge.Run(t.Context(), to, purge.Policy{Action: purge.Purge, BatchSize: countedBatch, BatchTarget: time.Minute}, func(purge.DatabaseResult) {}).Databases[0]
	cutting.Wait()
	if left := c.left(t); r.Status != purge.Complete || left != countedLive || r.DeletedRows < countedRows-tied || !strings.Contains(text(r.Findings), fmt.Sprintf("off by up to %d", countedBatch)) {
		t.Errorf("%d of %d rows published, %d left: %+v", r.DeletedRows, countedRows, left, r)
	}
}
