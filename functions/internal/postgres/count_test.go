package postgres

import (
	"context"
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

// said is about how many bytes go each way in a run over so many rows.
var said = map[relay.Way]int{relay.ToServer: 35_000, relay.ToClient: 10_000}

// Two runs and another cleaner delete at once, and the connection of one run is cut. What
// the runs publish is what left, less what the cleaner deleted: to the row, but for one
// batch of which the server said too little before the cut, and that is told. With
// CUT_EVERY=n in the environment there is a cut at each nth byte.
func TestWhatIsPublishedIsWhatLeftWhereverTheConnectionIsCut(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_counted", "")
	every, _ := strconv.Atoi(os.Getenv("CUT_EVERY")) //nolint:errcheck // none is random
	var cuts, inexact atomic.Int64
	for way, all := range said {
		for name, trigger := range map[string]bool{"without a trigger": false, "with a trigger": true} {
			var tried atomic.Int64
			next := func() (at int, more bool) {
				n := int(tried.Add(1)) - 1
				if every > 0 { // in no order, so that one that is broken off has tried some of all
					tries := all / every
					return n * stride % tries * every, n < tries
				}
				return rand.N(all), n < cutsTried
			}
			for i := range 4 {
				t.Run(fmt.Sprintf("%s, %s, %d", way, name, i), func(t *testing.T) {
					t.Parallel()
					c := newCounted(t, s, trigger)
					for at, more := next(); more && !t.Failed(); at, more = next() {
						off, cut := c.purge(t, way, at)
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
	t.Cleanup(func() { t.Logf("%d cuts, of which %d left a count inexact", cuts.Load(), inexact.Load()) })
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

// purge purges fresh rows while the connection is cut once, and returns by how much the
// count was off.
func (c *counted) purge(t *testing.T, way relay.Way, n int) (off int64, cut bool) {
	t.Helper()
	c.fill(t)
	before := c.between.Cuts()
	c.between.CutAfter(way, n)
	var published, cleaned atomic.Int64
	run := func(s Server) purge.DatabaseResult {
		to := target(s, c.name)
		to.Engine = undisturbed{s}
		r := purge.Run(t.Context(), to, purge.Policy{Action: purge.Purge, BatchSize: countedBatch, BatchTarget: time.Minute, Concurrency: 1 + n%2, ConnectTimeout: 10 * time.Second}, func(purge.DatabaseResult) {}).Databases[0]
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
		t.Errorf("cut %s at byte %d: %t, told: %t; published %d and another cleaner deleted %d of %d rows; %d of %d live rows are left",
			way, n, cut, told, published.Load(), cleaned.Load(), countedRows, left, countedLive)
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
	to.Deleted = func(string, int64) { // the first trip has one batch
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
