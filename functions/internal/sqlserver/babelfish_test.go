package sqlserver

import (
	"strings"
	"testing"
	"time"
)

// Babelfish has an expiration at each millisecond, and sends the nearest tick.
func TestAWindowHoldsTheExpirationsThatItsEndsWereReadFrom(t *testing.T) {
	second := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	nearest := func(at time.Time) time.Time {
		down := datetime(at)
		if up := next(down); up.Sub(at) < at.Sub(down) {
			return up
		}
		return down
	}
	for ms := range 1000 {
		kept := second.Add(time.Duration(ms) * time.Millisecond)
		start := facts{}.startOf(nearest(kept))
		if end := (facts{}).endOf(start); start.After(kept) || !end.After(kept) || !start.Equal(datetime(start)) {
			t.Errorf("%s is not in %s to %s", kept, start, end)
		}
		tick := datetime(kept)
		if exact := (facts{exact: true}); !exact.startOf(tick).Equal(tick) || !exact.endOf(tick).Equal(next(tick)) {
			t.Errorf("SQL Server: %s to %s holds more than %s", exact.startOf(tick), exact.endOf(tick), tick)
		}
	}
}

func TestALongNameOfBabelfishIsItsOwn(t *testing.T) {
	long := "EdFi_Admin_" + strings.Repeat("x", 100)
	const kept = "edfi_admin_xxxxxxxxxxxxxxxxxxxx21102205316ed6caaa039c26d229fc76"
	for _, c := range []struct {
		database, name string
		exact, want    bool
	}{
		{kept, long, false, true},
		{kept, long, true, false},
		{kept, long + "x", false, false},
		{kept, kept, false, true},
		{"EdFi_Admin", "edfi_admin", true, true},
		{"EdFi_Admin", "EdFi_Admin ", true, false},
	} {
		if got := (facts{database: c.database, exact: c.exact}).opens(c.name); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
