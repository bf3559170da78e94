package postgres

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// following returns one of batches after the other.
func following(batches []purge.Batch) (next func() (purge.Batch, bool)) {
	return func() (b purge.Batch, more bool) {
		if len(batches) == 0 {
			return b, false
		}
		b, batches = batches[0], batches[1:]
		return b, true
	}
}

// tenEach returns a connection to a table whose rows take so long to delete, and batches of
// ten rows each: two alike, one by place, a patient one, two of rows as they are met, and
// one more like the first.
func tenEach(t *testing.T, s stage, perRow time.Duration) (*conn, []purge.Batch) {
	t.Helper()
	db := s.create(t)
	if perRow > 0 {
		db.Delay(t, perRow)
	}
	start := db.Now(t).Add(-time.Hour).Truncate(time.Second)
	var batches []purge.Batch
	for n := range 7 {
		var expirations []time.Time
		for i := range 10 {
			expirations = append(expirations, start.Add(time.Duration(10*n+i)*time.Second))
		}
		db.Insert(t, expirations...)
		from := start.Add(time.Duration(10*n) * time.Second)
		w := window{from: timestamp(from), to: timestamp(from.Add(10 * time.Second)), scanned: n == 4 || n == 5}
		w.physical, w.lower, w.upper = n == 2, page(0), page(lastPage)
		batches = append(batches, purge.Batch{Window: w, Patient: n == 3})
	}
	opened, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	c := opened.(*conn)
	if !c.facts.readsRanges() {
		batches[2].Window = batches[1].Window.(window) // which is empty by then
	}
	return c, batches
}

func TestBatchesOfAllFormsAreDeletedInTheirOrder(t *testing.T) {
	t.Parallel()
	c, batches := tenEach(t, newStage(t, "purge_forms", ""), 0)
	var rows []int64
	c.DeleteAll(t.Context(), batches[0], following(batches[1:]), func(gone purge.Deleted, err error) {
		if rows = append(rows, gone.Rows); err != nil || gone.Transaction == 0 && gone.Writes != 0 {
			t.Errorf("batch %d: %+v, %v", len(rows), gone, err)
		}
	})
	want := []int64{10, 10, 10, 10, 10, 10, 10}
	if !c.facts.readsRanges() {
		want[2] = 0
	}
	if !slices.Equal(rows, want) {
		t.Errorf("%d rows, want %d", rows, want)
	}
}

func TestLimitsAreSetAnewBetweenBatches(t *testing.T) {
	t.Parallel()
	c, batches := tenEach(t, newStage(t, "purge_anew", ""), 0)
	alike := []purge.Batch{batches[0], batches[1], batches[6]}
	anew, set := 0, (*limits)(nil)
	c.DeleteAll(t.Context(), alike[0], following(alike[1:]), func(gone purge.Deleted, err error) {
		if gone.Rows != 10 || err != nil {
			t.Errorf("%+v, %v", gone, err)
		}
		if c.limits != set {
			anew, set = anew+1, c.limits
		}
		c.limits.until = time.Now().Add(-time.Nanosecond)
	})
	// The second was under way when the limits of the first were over.
	if anew != 2 {
		t.Errorf("limits were set %d times", anew)
	}
}

func TestAllThatCameIsToldOfWhereTheConnectionIsLost(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_came", "")
	for name, first := range map[string]int{"alike": 0, "of another form": 1, "as they are met": 4} {
		c, batches := tenEach(t, s, 20*time.Millisecond)
		other := connect(t, c.database)
		come, told := 1, 0
		next := following(batches[first+1:])
		c.DeleteAll(t.Context(), batches[first], func() (b purge.Batch, more bool) {
			if come == 1 { // while the first one is deleted, or before the second of those that are met
				must(t, other, fmt.Sprintf("SELECT pg_terminate_backend(%d, 10000)", c.pg.PgConn().PID()))
			}
			if told < 2 {
				if b, more = next(); more {
					come++
				}
			}
			return b, more
		}, func(gone purge.Deleted, err error) {
			told++
			if !errors.Is(err, purge.ErrLost) && !batches[first].Window.(window).scanned || told > 1 && !errors.Is(err, purge.ErrUncommitted) {
				t.Errorf("%s: %+v, %v", name, gone, err)
			}
		})
		if come < 2 || told != come {
			t.Errorf("%s: %d batches came, %d were told of", name, come, told)
		}
	}
}
