package postgres

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
)

// zoned is a database with settings of its zone, and who writes tokens to it.
type zoned struct {
	database
	stage  stage
	zones  []string // all that the server knows
	random *rand.Rand
	told   []string // what is set
	own    string   // the server's own zone; "" is what it has
}

// newZoned makes one, whose choices are those of a seed.
func newZoned(t *testing.T, role string) *zoned {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("SEED=%d", seed)
	s := newStage(t, role, "")
	z := &zoned{database: estate(t, s, purge.AdminTokens, purge.ConfigurationTokens), stage: s, random: rand.New(rand.NewPCG(seed, 0))}
	writer := z.writer()
	must(t, z.conn, "DROP ROLE IF EXISTS "+writer+"; CREATE ROLE "+writer+" LOGIN PASSWORD "+quote(password))
	t.Cleanup(func() { must(t, z.conn, "DROP OWNED BY "+writer+"; DROP ROLE "+writer) }) // ahead of the database's own
	must(t, z.conn, "GRANT USAGE ON SCHEMA adminapi, dmscs TO "+writer)
	must(t, z.conn, `GRANT INSERT ON adminapi.tokens, dmscs."OpenIddictToken" TO `+writer)
	read, _ := z.conn.Query(t.Context(), "SELECT name FROM pg_timezone_names ORDER BY 1")
	var err error
	if z.zones, err = pgx.CollectRows(read, pgx.RowTo[string]); err != nil || len(z.zones) < 300 {
		t.Fatalf("%d zones, %v", len(z.zones), err)
	}
	return z
}

// writer is the role of whoever writes tokens.
func (z *zoned) writer() string { return z.role + "_writer" }

// zone returns any that a setting may have, in all of its forms.
func (z *zoned) zone() string {
	switch z.random.IntN(8) {
	case 0: // hours east of Greenwich
		return strconv.Itoa(z.random.IntN(27) - 12)
	case 1:
		return fmt.Sprintf("INTERVAL '%d minutes' HOUR TO MINUTE", 15*(z.random.IntN(27*4)-12*4))
	case 2: // as POSIX has it, west of Greenwich
		return quote(fmt.Sprintf("<here>%d", z.random.IntN(27)-14))
	default:
		return quote(z.zones[z.random.IntN(len(z.zones))])
	}
}

// set gives database, writer and purge their zones, each or not.
func (z *zoned) set(t *testing.T) {
	t.Helper()
	name := pgx.Identifier{z.name}.Sanitize()
	z.told, z.own = nil, ""
	for _, whose := range []string{"DATABASE " + name, "ROLE " + z.writer() + " IN DATABASE " + name, "ROLE " + z.role + " IN DATABASE " + name} {
		must(t, z.conn, "ALTER "+whose+" RESET timezone")
		if z.random.IntN(2) == 0 {
			set := "ALTER " + whose + " SET TIME ZONE " + z.zone()
			must(t, z.conn, set)
			z.told = append(z.told, set)
		}
	}
}

// as connects a role as it would by itself.
func (z *zoned) as(t *testing.T, role string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(server.URL(z.name))
	if err != nil {
		t.Fatal(err)
	}
	config.User, config.Password = role, password
	if z.own != "" { // which looks the same to a session
		config.RuntimeParams["timezone"] = z.own
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (z *zoned) within(d time.Duration) time.Duration {
	return time.Duration(z.random.Int64N(int64(d)))
}

// instants returns some, most of them near those at which the clock of a session is set, in
// any year to come.
func (z *zoned) instants(t *testing.T, session *pgx.Conn) (all []time.Time) {
	t.Helper()
	first := time.Date(2026+z.random.IntN(12), 1, 1, 0, 0, 0, 0, time.UTC)
	read, _ := session.Query(t.Context(), `
SELECT instant FROM generate_series($1::timestamptz, $1::timestamptz + interval '1 year', '15 min') AS instant
WHERE instant::timestamp - (instant - interval '15 min')::timestamp <> interval '15 min'`, first)
	changes, err := pgx.CollectRows(read, pgx.RowTo[time.Time])
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range append(changes, first.Add(z.within(365*24*time.Hour))) {
		all = append(all, change, change.Add(-time.Microsecond))
		for range 4 {
			all = append(all, change.Add(z.within(20*time.Minute)-10*time.Minute), change.Add(z.within(8*time.Hour)-4*time.Hour))
		}
	}
	return all
}

// A token is accepted for five minutes after it expires. For any zone that is set anywhere,
// at any instant, and whether the token was written in the zone of its session or in UTC.
func TestNoClockIsAheadOfATokenThatIsAccepted(t *testing.T) {
	t.Parallel()
	z := newZoned(t, "purge_clocks")
	table := purge.AdminTokens
	clock := strings.ReplaceAll(sqlLocalClock, "clock_timestamp()", "$2::timestamptz")
	for range 30 {
		if z.set(t); z.told == nil {
			z.own = z.zones[z.random.IntN(len(z.zones))]
			z.told = []string{"the server has " + z.own}
		}
		writer, purger := z.as(t, z.writer()), z.as(t, z.role)
		for _, at := range z.instants(t, writer) {
			now := at.Truncate(time.Microsecond)
			var read time.Time
			if err := purger.QueryRow(t.Context(), clock, table.Grace.Seconds(), now).Scan(&read); err != nil {
				t.Fatalf("%q: %v", z.told, err)
			}
			cutoff := table.Cutoff(read, 0)
			if hidden := strings.Contains(strings.Join(z.told, " "), "ROLE purge_clocks IN"); hidden && read.After(now.Add(-12*time.Hour)) {
				t.Fatalf("%q: at %s a clock of %s, where the purge's own zone hides the server's", z.told, now, read)
			}
			accepted := []time.Time{now.Add(time.Microsecond - table.Grace), now}
			for range 4 {
				accepted = append(accepted, now.Add(z.within(10*time.Minute)-table.Grace), now.Add(z.within(3*time.Hour)), now.Add(z.within(48*time.Hour)))
			}
			dead := now.Add(-30 * time.Hour) // by any clock
			rows, _ := writer.Query(t.Context(), "SELECT expires, expires::timestamp, expires AT TIME ZONE 'UTC' FROM unnest($1::timestamptz[]) AS expires", append(accepted, dead))
			var expires, local, utc time.Time
			_, err := pgx.ForEachRow(rows, []any{&expires, &local, &utc}, func() error {
				for _, written := range []time.Time{local, utc} {
					if goes := !written.After(cutoff); goes != expires.Equal(dead) {
						return fmt.Errorf("it goes: %t, with %s written and a cut-off of %s", goes, written, cutoff)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatalf("%q: at %s a token that expires at %s: %v", z.told, now, expires, err)
			}
		}
		writer.Close(t.Context())
		purger.Close(t.Context())
	}
}

// The same for whole runs, now.
func TestNoTokenGoesThatItsOwnServerStillAccepts(t *testing.T) {
	t.Parallel()
	z := newZoned(t, "purge_zones")
	for range 8 {
		z.set(t)
		for _, table := range []purge.Table{purge.AdminTokens, purge.ConfigurationTokens} {
			z.purge(t, table, "", "expires", "expires AT TIME ZONE 'UTC'")
		}
	}
	// In a column that has a zone a token is an instant, whatever zone its session sets.
	must(t, z.conn, `ALTER TABLE dmscs."OpenIddictToken" ALTER "ExpirationDate" TYPE timestamptz`)
	for range 4 {
		z.set(t)
		z.purge(t, purge.ConfigurationTokens, "SET TIME ZONE "+z.zone(), "expires")
	}
}

// purge has tokens written, in so many ways, by a session that begins with a statement, and
// purged.
func (z *zoned) purge(t *testing.T, table purge.Table, begin string, ways ...string) {
	t.Helper()
	writer, its, payload := z.as(t, z.writer()), relations[table.Name], "payload"
	defer writer.Close(t.Context())
	must(t, writer, begin)
	if table.Name == purge.ConfigurationTokens.Name {
		payload = `"Payload"`
	}
	now := z.Now(t)
	expires := []time.Time{now.Add(-30 * time.Hour), now.Add(-40 * time.Hour), // dead by any clock
		now.Add(time.Minute - table.Grace), now, now.Add(time.Minute)}
	for range 10 {
		expires = append(expires, now.Add(z.within(30*time.Hour)+time.Minute-table.Grace))
	}
	for _, way := range ways {
		_, err := writer.Exec(t.Context(), fmt.Sprintf("INSERT INTO %s (%s, %s) SELECT %s, extract(epoch FROM expires)::text FROM unnest($1::timestamptz[]) AS expires",
			its.table, its.column, payload, way), expires)
		if err != nil {
			t.Fatal(err)
		}
	}
	r := runTables(t, z.stage.server(), z.database, policy, table)
	accepted := one[int](t, z.conn, fmt.Sprintf("SELECT count(*) FROM %s WHERE %s::float8 > extract(epoch FROM now()) - 29 * 3600", its.table, payload))
	if r.Status != purge.Complete || r.DeletedRows != int64(2*len(ways)) || accepted != (len(expires)-2)*len(ways) {
		t.Errorf("%s, %q %s: %d rows are left, %+v", table, z.told, begin, accepted, r)
	}
	must(t, z.conn, "DELETE FROM "+its.table)
}
