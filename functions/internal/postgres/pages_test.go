package postgres

import (
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
)

// dense opens two connections to a table of so many rows, and returns all that has expired.
func dense(t *testing.T, s stage, o edfi.FillOptions) (db database, c, other *conn, all purge.Window) {
	t.Helper()
	db = s.create(t)
	if err := edfi.Fill(t.Context(), db.conn, o, nil); err != nil {
		t.Fatal(err)
	}
	var opened [2]*conn
	for i := range opened {
		c, err := s.server().Open(t.Context(), db.name, purge.ClientAccessTokens, i == 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		opened[i] = c.(*conn)
	}
	return db, opened[0], opened[1], opened[0].Expired(time.Time{}, db.Now(t))
}

func TestMostRowsGoPageByPageAndNoBatchHasMoreThanItMay(t *testing.T) {
	t.Parallel()
	_, c, other, all := dense(t, newStage(t, "purge_pages", "GRANT SELECT ON dbo.clientaccesstokens TO purge_pages"), edfi.FillOptions{Expired: 100_000, Live: 50_000})
	if !c.facts.readsRanges() {
		t.Skip("it has no plan for a range of places")
	}
	const size = 1000
	left, deleted, trail := 100_000, 0, purge.Trail{}
	for rest := all; rest != nil; {
		var cut []purge.Batch
		var err error
		if cut, rest, err = c.Cut(t.Context(), rest, size, 8); err != nil {
			t.Fatal(err)
		}
		for _, b := range cut {
			if w := b.Window.(window); !w.physical || !w.whole {
				t.Fatalf("%+v", w)
			}
			b.Most = size
			gone, err := c.Delete(t.Context(), b)
			if err != nil || gone.Rows > size || gone.Rows < size/3 && left > size {
				t.Fatalf("%d rows, %v", gone.Rows, err)
			}
			left, deleted, trail.Rows = left-int(gone.Rows), deleted+int(gone.Rows), trail.Rows+gone.Rows
		}
		if rest != nil {
			trail.Checkpoints = append(trail.Checkpoints, rest)
			if oldest, found, err := c.Oldest(t.Context(), rest, trail); (found == nil) != (left == 0) || err != nil {
				t.Fatalf("%d left: %v, %v, %v", left, oldest, found, err)
			}
		}
	}
	if deleted != 100_000 {
		t.Errorf("%d rows deleted", deleted)
	}
	others := []purge.Conn{other}
	if oldest, found, err := c.OldestWith(t.Context(), others, all, trail); err != nil || found != nil {
		t.Errorf("%v, %v, %v", oldest, found, err)
	}
}

func TestFewRowsOfATableGoByTheirIndex(t *testing.T) {
	t.Parallel()
	s := newStage(t, "purge_few", "GRANT SELECT ON dbo.clientaccesstokens TO purge_few")
	for name, o := range map[string]edfi.FillOptions{
		"few of many":   {Expired: 50_000, Live: 100_000},
		"a small table": {Expired: 100_000},
	} {
		_, c, _, all := dense(t, s, o)
		for rest := all; rest != nil; {
			var cut []purge.Batch
			var err error
			if cut, rest, err = c.Cut(t.Context(), rest, 1000, 8); err != nil {
				t.Fatal(err)
			}
			for _, b := range cut {
				if b.Window.(window).physical {
					t.Fatalf("%s: %+v", name, b)
				}
			}
		}
	}
}

func TestALookThatIsSharedFindsWhatOneAloneFinds(t *testing.T) {
	t.Parallel()
	db, c, other, all := dense(t, newStage(t, "purge_shares", "GRANT SELECT ON dbo.clientaccesstokens TO purge_shares"), edfi.FillOptions{Expired: 400_000})
	must(t, db.conn, "DELETE FROM dbo.clientaccesstokens")
	behind := db.Now(t).Add(-20 * time.Hour)
	trail := purge.Trail{Rows: 400_000}
	looks, err := c.looks(t.Context(), all.(window), trail)
	if err != nil || c.facts.readsRanges() && len(looks) < 3 {
		t.Fatalf("%d looks, %v", len(looks), err)
	}
	look := func(what string, want bool) {
		t.Helper()
		oldest, found, err := c.OldestWith(t.Context(), []purge.Conn{other}, all, trail)
		if err != nil || (found != nil) != want || want && !oldest.Equal(behind) {
			t.Errorf("%s: %v, %v, %v", what, oldest, found, err)
		}
	}
	look("nothing", false)
	db.Insert(t, behind.Add(time.Hour), behind)
	look("two rows", true)
	other.pg.Close(t.Context())
	look("the other connection is gone", true)
}
