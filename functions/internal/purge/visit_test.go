package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// estate is an engine of one database with several tables, and closed tells of its
// connections.
type estate struct {
	tables       map[string]*fake
	mu           sync.Mutex
	opens, turns int
	closed       int
	down         error
	unseen       error  // what a look at other tables ends with
	loses        string // "delete" or "switch": the first one loses the connection
	away         int    // how many tries to open fail after that
	since        error  // what they fail with
}

// lose tells whether the connection is lost now.
func (e *estate) lose(at string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.loses != at {
		return false
	}
	e.loses, e.down = "", e.since
	return true
}

// tenant is a connection to one of the tables.
type tenant struct {
	*fake
	of *estate
}

func (e *estate) table(name string) (*fake, error) {
	f, there := e.tables[name]
	if !there {
		return nil, NotPurgeable{Kind: NoTable, Message: "no table " + name}
	}
	return f, nil
}

func (e *estate) Open(_ context.Context, _ string, table Table, _ bool) (Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.opens++
	if e.away--; e.down != nil && e.since != nil && e.away < 0 {
		e.down = nil
	}
	if e.down != nil {
		e.closed++
		return nil, e.down
	}
	f, err := e.table(table.Name)
	if err != nil {
		e.closed++
		return nil, err
	}
	return &tenant{f, e}, nil
}

func (c *tenant) Delete(ctx context.Context, b Batch) (Deleted, error) {
	if c.of.lose("delete") {
		return Deleted{}, Uncommitted(ErrLost)
	}
	return c.fake.Delete(ctx, b)
}

func (c *tenant) Switch(_ context.Context, table Table) error {
	if c.of.lose("switch") {
		return ErrLost
	}
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.of.turns++
	f, err := c.of.table(table.Name)
	if err == nil {
		c.fake = f
	}
	return err
}

func (c *tenant) Check(context.Context) ([]Finding, error) {
	return []Finding{NoTLS.Found("no TLS"), Rights.Found("rights")}, nil
}

func (c *tenant) Survey(_ context.Context, table Table) (rows int64, oldest *time.Time, there bool, err error) {
	if _, there = c.of.tables[table.Name]; !there {
		return 0, nil, false, nil
	}
	return manyRows, nil, true, c.of.unseen
}

func (c *tenant) Close() {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.of.closed++
}

func (e *estate) run(t *testing.T, p Policy, matched bool) DatabaseResult {
	t.Helper()
	p.Action = Purge
	return e.runTables(t, p, matched, Tables()...)
}

func (e *estate) runTables(t *testing.T, p Policy, matched bool, tables ...Table) DatabaseResult {
	t.Helper()
	p.BatchSize = max(p.BatchSize, 10)
	target := Target{Engine: e, Tables: tables, Databases: []Database{{Name: "a", Matched: matched}}, Log: slog.New(slog.DiscardHandler)}
	d := Run(t.Context(), target, p, func(DatabaseResult) {}).Databases[0]
	if e.opens != e.closed {
		t.Errorf("%d connections opened, %d closed", e.opens, e.closed)
	}
	return d
}

func estateOf(rows int) *estate {
	e := &estate{tables: map[string]*fake{}}
	for _, table := range Tables() {
		e.tables[table.Name] = &fake{rows: rows}
	}
	return e
}

func TestTheTablesOfADatabaseShareAConnection(t *testing.T) {
	e := estateOf(7)
	if d := e.run(t, Policy{}, false); d.Status != Complete || d.DeletedRows != 28 || len(d.Tables) != 4 || e.opens != 1 || e.turns != 3 {
		t.Errorf("%+v, %d opened", d, e.opens)
	}
}

func TestATableThatIsNotThereIsNone(t *testing.T) {
	e := estateOf(7)
	delete(e.tables, AdminTokens.Name)
	delete(e.tables, ConfigurationTokens.Name)
	if d := e.run(t, Policy{}, false); d.Status != Complete || d.DeletedRows != 14 || len(d.Tables) != 2 || d.Findings == nil || len(d.Findings) != 0 {
		t.Errorf("%+v", d)
	}
	e = &estate{}
	if d := e.run(t, Policy{}, false); d.Status != Failed || !strings.Contains(d.Error, "none of the tables") || d.Findings[0].Code != NoTable.Code {
		t.Errorf("%+v", d)
	}
	e = &estate{}
	if d := e.run(t, Policy{}, true); d.Status != Skipped || d.Tables != nil {
		t.Errorf("%+v", d)
	}
}

func TestATableThatFailsStopsNoOther(t *testing.T) {
	e := estateOf(7)
	e.tables[AdminTokens.Name].err = errors.New("hunter")
	d := e.run(t, Policy{}, false)
	if d.Status != Failed || d.DeletedRows != 21 || d.Error != "adminapi.Tokens: hunter" || len(d.Tables) != 4 {
		t.Errorf("%+v", d)
	}
	e = estateOf(7)
	for name, cause := range map[string]string{ClientAccessTokens.Name: "hunter", AdminTokens.Name: "fisher", ClientAccessTokenLogs.Name: "hunter"} {
		e.tables[name].err = errors.New(cause)
	}
	d = e.run(t, Policy{}, false)
	if d.DeletedRows != 7 || d.Error != "ClientAccessTokens, ClientAccessTokenLogs: hunter; adminapi.Tokens: fisher" {
		t.Errorf("%+v", d)
	}
}

func TestADatabaseThatIsDownFailsOnceForAllItsTables(t *testing.T) {
	e := &estate{down: errors.New("no route")}
	if d := e.run(t, Policy{}, false); d.Status != Failed || d.Error != "no route" || e.opens != 1 || len(d.Tables) != 4 || d.OldestExpiredAge() != nil {
		t.Errorf("%+v, %d opened", d, e.opens)
	}
}

// Whichever table has its turn next, the database is the one that was open before, and
// whoever holds it may be the session that was lost.
func TestAConnectionThatIsLostIsWaitedForInEachTable(t *testing.T) {
	for _, loses := range []string{"delete", "switch"} {
		for _, since := range []error{ErrAlreadyRunning, ErrUnreached, ErrLost, ErrNotYet} {
			for range 10 { // their order is another one each time
				synctest.Test(t, func(t *testing.T) {
					e := estateOf(7)
					e.loses, e.since, e.away = loses, since, 5
					if d := e.run(t, Policy{}, false); d.Status != Complete || d.DeletedRows != 28 || len(d.Tables) != 4 {
						t.Errorf("%s, then %v: %+v", loses, since, d)
					}
				})
			}
		}
	}
}

// One that stays away is a failure in the end, and another run that stays is another.
func TestATableIsWaitedForNoLongerThanItsDatabase(t *testing.T) {
	for since, want := range map[error]Status{ErrAlreadyRunning: Partial, ErrUnreached: Failed} {
		synctest.Test(t, func(t *testing.T) {
			e := estateOf(7)
			e.loses, e.since, e.away = "switch", since, 1_000_000
			start := time.Now()
			d := e.run(t, Policy{}, false)
			if took := time.Since(start); d.Status != want || d.DeletedRows != 7 || took < reconnectTimeout || took > reconnectTimeout+maxBackoff {
				t.Errorf("%v after %v: %+v", since, took, d)
			}
		})
	}
}

// A table with a large backlog takes neither the whole of a short run nor, run after run,
// the whole of a cap.
func TestTablesShareTheTimeAndTheCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := estateOf(7)
		e.tables[ClientAccessTokens.Name] = &fake{rows: 1_000_000, takes: time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		target := Target{Engine: e, Tables: Tables(), Databases: []Database{{Name: "a"}}, Log: slog.New(slog.DiscardHandler)}
		d := Run(ctx, target, Policy{Action: Purge, BatchSize: 10, StopBefore: 10 * time.Second}, func(DatabaseResult) {}).Databases[0]
		if d.Status != Partial || d.StopReason != Deadline || d.DeletedRows < 21+1000 {
			t.Errorf("%+v", d)
		}
		for _, table := range d.Tables[1:] {
			if table.Status != Complete || table.DeletedRows != 7 {
				t.Errorf("%+v", table)
			}
		}
	})
	e := estateOf(1000)
	got := map[string]int64{}
	for range 40 {
		for _, table := range e.run(t, Policy{MaxRows: 10}, false).Tables {
			got[table.Table] += table.DeletedRows
		}
	}
	if fmt.Sprint(len(got)) != "4" || got[ClientAccessTokens.Name] == 0 || got[AdminTokens.Name] == 0 || got[ConfigurationTokens.Name] == 0 || got[ClientAccessTokenLogs.Name] == 0 {
		t.Errorf("%v", got)
	}
}

// Nor does one that is locked as a whole, whenever its turn comes.
func TestALockedTableTakesNoMoreThanItsShare(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			e := estateOf(7)
			e.tables[AdminTokens.Name].locked = true
			d := e.run(t, Policy{MaxDuration: 3 * time.Second, StopBefore: 10 * time.Second}, false)
			if d.Status != Partial || d.DeletedRows != 21 || d.DurationMs > 5000 {
				t.Fatalf("%+v", d)
			}
		})
	}
}

// counted is a table that others lock as soon as its rows are to be counted.
type counted struct{ *fake }

func (c counted) Open(context.Context, string, Table, bool) (Conn, error) { return c, nil }

func (c counted) Count(ctx context.Context, _ Window) (int64, error) {
	sleep(ctx, 2*time.Second) // LOCK_TIMEOUT
	return 0, ErrLocked
}

func TestACheckThatCantCountSaysSoAndIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := Target{Engine: counted{&fake{rows: 7}}, Databases: []Database{{Name: "a"}}, Log: slog.New(slog.DiscardHandler)}
		d := Run(t.Context(), target, Policy{Action: Check, MaxDuration: time.Minute}, func(DatabaseResult) {}).Databases[0]
		if d.Status != Complete || !slices.ContainsFunc(d.Findings, func(f Finding) bool { return strings.HasPrefix(f.Message, "more rows than could be counted") }) {
			t.Errorf("%+v", d)
		}
	})
}

func TestACheckTellsOnceOfTheDatabaseAndOfTablesThatNobodyAskedFor(t *testing.T) {
	for _, unseen := range []error{nil, ErrTimeout, ErrLocked} {
		e := estateOf(7)
		e.unseen = unseen
		delete(e.tables, ClientAccessTokens.Name)
		d := e.runTables(t, Policy{Action: Check}, false, ClientAccessTokens, AdminTokens, ConfigurationTokens)
		count := map[string]int{}
		for _, f := range d.Findings {
			count[f.Code]++
			if f.Code == UnwatchedTable.Code && (f.Level != LevelWarning || !strings.HasPrefix(f.Message, "ClientAccessTokenLogs has about 100,000 rows, of unknown age") ||
				!strings.HasSuffix(f.Message, " TABLES to ClientAccessTokens,adminapi.Tokens,dmscs.OpenIddictToken,ClientAccessTokenLogs")) {
				t.Errorf("%+v", f)
			}
		}
		if d.Status != Complete || count[UnwatchedTable.Code] != 1 || count[Connected.Code] != 1 || count[NoTLS.Code] != 1 || count[Rights.Code] != 2 {
			t.Errorf("%+v", d)
		}
	}
}
