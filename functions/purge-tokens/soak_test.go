package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/relay"
)

const (
	soakBatch       = 80 // the largest batch, of which a lost connection may hide one
	soakConnections = 2  // that delete at once
)

// A mishap strikes a run at some moment.
type mishap func(t *testing.T, s *soaked, r *rand.Rand) toll

// toll is what a mishap means for the count.
type toll struct {
	lost      int64 // batches whose acknowledgements it may have swallowed
	killed    bool  // and what the run would have published
	published int64 // by somebody else
}

var mishaps = map[string]mishap{
	"nothing": func(*testing.T, *soaked, *rand.Rand) toll { return toll{} },
	"latency": func(_ *testing.T, s *soaked, r *rand.Rand) toll {
		s.relay.Delay(time.Duration(r.IntN(5000)) * time.Microsecond)
		return toll{}
	},
	"a cut": func(_ *testing.T, s *soaked, r *rand.Rand) toll {
		way := relay.ToServer
		if r.IntN(2) == 0 {
			way = relay.ToClient
		}
		s.relay.CutAfter(way, r.IntN(4000))
		return toll{lost: 1}
	},
	"a lost acknowledgement": func(_ *testing.T, s *soaked, _ *rand.Rand) toll {
		s.relay.CutAt(relay.ToClient, "DELETE ")
		return toll{lost: 1}
	},
	"a reset": func(_ *testing.T, s *soaked, r *rand.Rand) toll {
		rest(r, 200*time.Millisecond)
		s.relay.Reset()
		return toll{lost: soakConnections}
	},
	"a server away": func(_ *testing.T, s *soaked, r *rand.Rand) toll {
		rest(r, 200*time.Millisecond)
		s.relay.Refuse()
		s.relay.Reset()
		rest(r, 300*time.Millisecond)
		s.relay.Heal()
		return toll{lost: soakConnections}
	},
	"pg_terminate_backend": func(t *testing.T, s *soaked, r *rand.Rand) toll {
		rest(r, 200*time.Millisecond)
		s.terminate(t)
		return toll{}
	},
	"locked rows": func(t *testing.T, s *soaked, r *rand.Rand) toll {
		tx, err := s.conn.Begin(t.Context())
		if err == nil {
			_, err = tx.Exec(t.Context(), "SELECT FROM dbo.clientaccesstokens ORDER BY expiration OFFSET $1 LIMIT 3 FOR UPDATE", r.IntN(100))
		}
		if err != nil {
			t.Fatal(err)
		}
		rest(r, 300*time.Millisecond)
		tx.Rollback(t.Context()) //nolint:errcheck // nothing is at stake
		return toll{}
	},
	"a second function": func(t *testing.T, s *soaked, r *rand.Rand) toll {
		rest(r, 100*time.Millisecond)
		_, lines := s.other.invoke(t, `{}`)
		return toll{published: oneMetric(t, lines).DeletedRows}
	},
	"kill -9": func(_ *testing.T, s *soaked, r *rand.Rand) toll {
		rest(r, 200*time.Millisecond)
		s.function.Stop()
		return toll{killed: true}
	},
	"more rows": func(t *testing.T, s *soaked, r *rand.Rand) toll {
		rest(r, 100*time.Millisecond)
		s.issue(t, r)
		return toll{}
	},
}

// Too long for anything but a soak: a run waits until its deadline.
var longMishaps = map[string]mishap{
	"silence": func(_ *testing.T, s *soaked, r *rand.Rand) toll {
		rest(r, 200*time.Millisecond)
		s.relay.Silence()
		return toll{lost: soakConnections}
	},
}

func rest(r *rand.Rand, most time.Duration) { time.Sleep(time.Duration(r.Int64N(int64(most)))) }

// soaked is a scene with a function beside the one that the faults are for.
type soaked struct {
	*scene
	other function
}

// issue writes tokens of all kinds: live, about to expire, expired one by one,
// many at one instant, and beyond the calendar.
func (db database) issue(t *testing.T, r *rand.Rand) {
	t.Helper()
	for _, kind := range []string{
		"now() AT TIME ZONE 'utc' + interval '1 hour' * (1 + random())",
		"now() AT TIME ZONE 'utc' + interval '1 second' * random()",
		"now() AT TIME ZONE 'utc' - interval '1 day' * random()",
		"date_trunc('hour', now() AT TIME ZONE 'utc')",
		"CASE WHEN i % 2 = 0 THEN '-infinity' ELSE 'infinity' END::timestamp",
	} {
		if _, err := db.conn.Exec(t.Context(), "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), "+kind+" FROM generate_series(1, $1) AS i", r.IntN(100)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoRowIsLostOrForgottenWhateverHappens takes what comes for some seconds,
// or for as long as make soak says. The seed settles the choices; when they take
// effect is up to the machine.
func TestNoRowIsLostOrForgottenWhateverHappens(t *testing.T) {
	t.Parallel()
	lasts := 5 * time.Second
	pool := maps.Clone(mishaps)
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatal("SOAK: ", err)
		}
		maps.Copy(pool, longMishaps)
	}
	seed := rand.Uint64()
	if text := os.Getenv("SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal("SEED: ", err)
		}
	}
	t.Logf("SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	names := slices.Sorted(maps.Keys(pool))

	env := []string{fmt.Sprintf("BATCH_SIZE=%d", soakBatch), fmt.Sprintf("CONCURRENCY=%d", soakConnections), "PAUSE=1ms", "BATCH_TARGET=50ms"}
	s := &soaked{scene: newScene(t, stage, 100, env...)}
	s.other = s.database.start(t)
	happened := map[string]int{}
	for end := time.Now().Add(lasts); time.Now().Before(end) && !t.Failed(); {
		s.issue(t, r)
		name := names[r.IntN(len(names))]
		event := fmt.Sprintf(`{"batchSize":%d}`, 1+r.IntN(soakBatch))
		switch r.IntN(4) {
		case 0:
			event = fmt.Sprintf(`{"maxRows":%d}`, 1+r.IntN(200))
		case 1:
			event = fmt.Sprintf(`{"maxDuration":"%dms"}`, 1+r.IntN(300))
		}
		happened[name]++
		before := s.gone(t)
		answered := s.function.run(t, event, 10*time.Second)
		toll := pool[name](t, s, r)
		a := <-answered
		if toll.killed {
			s.function = s.start(t, env...)
		} else if a.err != nil {
			t.Errorf("%v\n%s", a.err, a.lines)
		}
		s.relay.Heal()
		s.untilQuiet(t)
		if a.err == nil {
			s.count(t, before, oneMetric(t, a.lines).DeletedRows+toll.published, soakBatch, toll.lost)
		}
		before = s.gone(t)
		s.count(t, before, s.drain(t, s.other), soakBatch, 0)
		if t.Failed() {
			t.Logf("after %q and %s: %s\n%s", name, event, a.reply.Payload, a.lines)
		}
	}
	t.Logf("%v", happened)
}
