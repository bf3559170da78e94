package purgetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// ofTable are the tests in which it matters which table it is.
var ofTable = map[string]func(*testing.T, suite){
	"EveryNumberOfRowsAroundABatchIsDrained":     testSizes,
	"ARowIsExpiredAtItsInstantAndNotATickBefore": testBoundary,
	"TheGracePeriodKeepsRows":                    testGrace,
	"TheServersTimeZoneTakesNoLiveRow":           testTimeZones,
	"EqualExpirationsLeaveInBoundedBatches":      testEqual,
	"TiesAcrossBatchesAreNeitherLostNorRepeated": testTies,
	"WithoutTheIndexAllIsDrainedWithAFinding":    testNoIndex,
	"RowsInsertedWhileItRunsAreSeen":             testInserts,
	"TheDeadlineStopsBetweenBatches":             testDeadline,
	"TheDeadlineStopsWithinABatch":               testSlowBatch,
	"ADryRunCountsAndDeletesNothing":             testDryRun,
	"ACheckFindsEachDefect":                      testCheckDefects,
	"SeveralConnectionsDeleteEachRowOnce":        testConcurrency,
	"BatchesSentAheadAreCountedOneByOne":         testAhead,
	"TheCapIsKept":                               testCap,
	"LockedRowsHoldUpNoOthers":                   testLocked,
	"RowsUnlockedInTimeLeaveToo":                 testUnlocked,
	"RowsThatDeleteDoesNotRemoveAreAnError":      testKept,
	"AMissingTableIsAnErrorThatSaysSo":           testNoTable,
	"AMissingRightIsAnErrorThatSaysSo":           testNoRight,
	"OnlyWhatAPatternMatchedIsSkipped":           testUnfit,
	"AnEmptyTableIsDrained":                      testEmpty,
	"TheOldestRowLeftIsKnownAfterAPartialRun":    testOldestLeft,
}

// ofRun are those in which it does not.
var ofRun = map[string]func(*testing.T, suite){
	"ACanceledRunTellsWhatItDid":                   testCancel,
	"TheLongestDurationStopsTheRun":                testMaxDuration,
	"ACheckDeletesNothing":                         testCheck,
	"ACapThatIsJustEnoughDrains":                   testCapEnough,
	"ASecondPurgerStepsBack":                       testTwoPurgers,
	"TheClaimEndsWithTheConnection":                testDeadPurger,
	"ALostConnectionIsOpenedAnew":                  testDisconnect,
	"AMissingDatabaseIsAnErrorThatSaysSo":          testNoDatabase,
	"ManyDatabasesAreServedAndOneFailureHidesNone": testManyDatabases,
	"NoTroubleOfOneDatabaseReachesAnother":         testTroubles,
}

// Run runs the suite for ClientAccessTokens.
func Run(t *testing.T, s Server) {
	RunTable(t, s, purge.ClientAccessTokens)
	suite{s, purge.ClientAccessTokens}.run(t, ofRun)
}

// RunTable runs what depends on the table, for any table.
func RunTable(t *testing.T, s Server, table purge.Table) { suite{s, table}.run(t, ofTable) }

func (s suite) run(t *testing.T, tests map[string]func(*testing.T, suite)) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

func testSizes(t *testing.T, s suite) {
	db := s.Create(t)
	live := spread(3, db.Now(t).Add(time.Hour).Truncate(time.Second), time.Minute)
	db.Insert(t, live...)
	statements := db.Record(t)
	for _, n := range []int{1, batch - 1, batch, batch + 1, 2 * batch, 2*batch + 1, 7 * batch} {
		db.Insert(t, spread(n, db.Now(t).Add(-time.Hour), time.Second)...)
		r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
		expect(t, r, purge.Complete, purge.Drained, n)
		expectLeft(t, db, live...)
		if want := (n + batch - 1) / batch; s.indexed() && r.Batches != want {
			t.Errorf("%d rows left in %d batches, want %d", n, r.Batches, want)
		}
	}
	if most := slices.Max(append(statements(), 0)); most > batch {
		t.Errorf("a statement deleted %d rows, BATCH_SIZE is %d", most, batch)
	}
}

func testBoundary(t *testing.T, s suite) {
	db := s.Create(t)
	now := db.Now(t).Truncate(time.Second)
	for _, d := range []time.Duration{-time.Hour, -s.Tick(), 0, s.Tick(), time.Hour} {
		db.Insert(t, now.Add(d))
	}
	r := s.do(t.Context(), t, hooked{Engine: s.Engine(), now: now}, db.Name(), policy())
	expect(t, r, purge.Complete, purge.Drained, 3)
	expectLeft(t, db, now.Add(s.Tick()), now.Add(time.Hour))
	if r.Local != s.Local(s.table) {
		t.Errorf("the zone of what the column holds is not certain: %t", r.Local)
	}
	if !at(r.Cutoff, s.table.Cutoff(now, 0)) || !at(r.OldestExpiration, s.table.Cutoff(now.Add(-time.Hour), 0)) {
		t.Errorf("cut-off %s, oldest %s", r.Cutoff, r.OldestExpiration)
	}
}

func testGrace(t *testing.T, s suite) {
	db := s.Create(t)
	now := db.Now(t).Truncate(time.Second)
	limit := now.Add(-24 * time.Hour)
	db.Insert(t, limit.Add(-time.Minute), limit, limit.Add(s.Tick()), now)
	p := policy()
	p.Grace = 24 * time.Hour
	r := s.do(t.Context(), t, hooked{Engine: s.Engine(), now: now}, db.Name(), p)
	expect(t, r, purge.Complete, purge.Drained, 2)
	expectLeft(t, db, limit.Add(s.Tick()), now)
	if age := age(r); age != 0 {
		t.Errorf("age %v although nothing that may go is left", age)
	}
}

// Where the zone of a table is not certain, its rows go by the earlier of two clocks.
func testTimeZones(t *testing.T, s suite) {
	for zone, ahead := range map[string]time.Duration{"Asia/Tokyo": 9 * time.Hour, "America/Bogota": -5 * time.Hour, "UTC": 0} {
		db := s.Create(t)
		if !db.SetTimeZone(t, zone) {
			return
		}
		clock := db.Now(t)
		if s.Local(s.table) {
			clock = clock.Add(min(0, ahead))
		}
		live := []time.Time{clock.Add(time.Minute), clock.Add(8 * time.Hour)}
		db.Insert(t, clock.Add(-8*time.Hour), clock.Add(-time.Minute))
		db.Insert(t, live...)
		expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), policy()), purge.Complete, purge.Drained, 2)
		expectLeft(t, db, live...)
	}
}

func testEqual(t *testing.T, s suite) {
	for _, index := range []bool{true, false} {
		db := s.Create(t)
		if !index {
			db.DropIndex(t)
		}
		now := db.Now(t).Truncate(time.Second)
		const n = 5*batch + 3
		db.Insert(t, spread(n, now.Add(-time.Hour), 0)...)
		db.Insert(t, now.Add(time.Hour))
		statements := db.Record(t)
		r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
		expect(t, r, purge.Complete, purge.Drained, n)
		expectLeft(t, db, now.Add(time.Hour))
		if most := slices.Max(append(statements(), 0)); most > batch {
			t.Errorf("index %t: a statement deleted %d rows, BATCH_SIZE is %d", index, most, batch)
		}
	}
}

func testTies(t *testing.T, s suite) {
	db := s.Create(t)
	now := db.Now(t).Truncate(time.Second)
	n := 0
	for i, ties := range []int{1, batch - 1, 2, batch, 1, batch - 2, 3, 3, 3, 3, 2 * batch, 1, 1} {
		db.Insert(t, spread(ties, now.Add(-time.Hour+time.Duration(i)*time.Second), 0)...)
		n += ties
	}
	statements := db.Record(t)
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), policy()), purge.Complete, purge.Drained, n)
	expectLeft(t, db)
	if most := slices.Max(append(statements(), 0)); most > batch {
		t.Errorf("a statement deleted %d rows, BATCH_SIZE is %d", most, batch)
	}
}

func testNoIndex(t *testing.T, s suite) {
	db := s.Create(t)
	db.DropIndex(t)
	now := db.Now(t)
	var want []time.Time
	for i := range 5 * batch { // expired and live side by side
		live := now.Add(time.Hour + time.Duration(i)*time.Minute)
		db.Insert(t, now.Add(-time.Hour-time.Duration(i)*time.Minute), live)
		want = append(want, live)
	}
	statements := db.Record(t)
	r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
	expect(t, r, purge.Complete, purge.Drained, 5*batch)
	expectLeft(t, db, want...)
	if most := slices.Max(append(statements(), 0)); most > batch {
		t.Errorf("a statement deleted %d rows, BATCH_SIZE is %d", most, batch)
	}
	for _, f := range r.Findings {
		if f.Code == "missing-expiration-index" && strings.Contains(f.Message, "CREATE INDEX") && strings.Contains(strings.ToLower(f.Message), strings.ToLower(s.table.Relation)) {
			return
		}
	}
	t.Errorf("no finding with the statement that creates the index: %v", r.Findings)
}

func testInserts(t *testing.T, s suite) {
	db := s.Create(t)
	now := db.Now(t)
	live := spread(batch, now.Add(time.Hour), time.Minute)
	db.Insert(t, spread(3*batch, now.Add(-time.Hour), time.Second)...)
	engine := hooked{Engine: s.Engine(), deleted: func(batches int) {
		if batches == 2 { // behind the sweep, ahead of it, and live
			db.Insert(t, spread(batch, now.Add(-2*time.Hour), time.Second)...)
			db.Insert(t, spread(batch, now.Add(-time.Minute), time.Second)...)
			db.Insert(t, live...)
		}
	}}
	expect(t, s.do(t.Context(), t, engine, db.Name(), policy()), purge.Complete, purge.Drained, 5*batch)
	expectLeft(t, db, live...)
}

func testCancel(t *testing.T, s suite) {
	db := s.Create(t)
	rows := spread(5*batch, db.Now(t).Add(-time.Hour).Truncate(time.Second), time.Second)
	db.Insert(t, rows...)
	ctx, cancel := context.WithCancel(t.Context())
	r := s.do(ctx, t, hooked{Engine: s.Engine(), deleted: func(n int) {
		if n == 2 {
			cancel()
		}
	}}, db.Name(), policy())
	expect(t, r, purge.Partial, purge.Canceled, 2*batch)
	expectLeft(t, db, rows[2*batch:]...)
	expect(t, s.do(ctx, t, s.Engine(), db.Name(), policy()), purge.Partial, purge.Canceled, 0)
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), policy()), purge.Complete, purge.Drained, 3*batch)
}

func testDeadline(t *testing.T, s suite) {
	db := s.Create(t)
	rows := spread(5*batch, db.Now(t).Add(-time.Hour).Truncate(time.Second), time.Second)
	db.Insert(t, rows...)
	p := policy()
	p.StopBefore, p.Pause = 3*time.Second, time.Hour // one batch, then a rest that nothing but the deadline ends
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second+4*opening(t, s, db))
	defer cancel()
	r := s.do(ctx, t, s.Engine(), db.Name(), p)
	if s.indexed() {
		expect(t, r, purge.Partial, purge.Deadline, batch)
		expectLeft(t, db, rows[batch:]...)
	} else { // a batch may have fewer, and any
		expect(t, r, purge.Partial, purge.Deadline, min(max(int(r.DeletedRows), 1), batch))
		if left := len(db.Expirations(t)); left != len(rows)-int(r.DeletedRows) {
			t.Errorf("%d rows are left, %d were deleted", left, r.DeletedRows)
		}
	}
	if ctx.Err() != nil {
		t.Error("the run ended after the deadline itself")
	}

	p.StopBefore = time.Hour
	r = s.do(ctx, t, s.Engine(), db.Name(), p)
	expect(t, r, purge.Partial, purge.Deadline, 0)
	if !finding(r, "no-time") {
		t.Errorf("no finding no-time: %v", r.Findings)
	}
}

func testSlowBatch(t *testing.T, s suite) {
	db := s.Create(t)
	rows := spread(batch, db.Now(t).Add(-time.Hour).Truncate(time.Second), time.Second)
	db.Insert(t, rows...)
	open := opening(t, s, db)
	db.Delay(t, 8*time.Second+4*open) // longer than there is, for a batch of one row too
	p := policy()
	p.StopBefore = 4 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second+4*open)
	defer cancel()
	expect(t, s.do(ctx, t, s.Engine(), db.Name(), p), purge.Partial, purge.Deadline, 0)
	if ctx.Err() != nil {
		t.Error("one batch overran the deadline")
	}
	expectLeft(t, db, rows...)
}

func testMaxDuration(t *testing.T, s suite) {
	db := s.Create(t)
	db.Insert(t, spread(5*batch, db.Now(t).Add(-time.Hour), time.Second)...)
	p := policy()
	p.MaxDuration, p.Pause = 3*time.Second+4*opening(t, s, db), time.Hour
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), p), purge.Partial, purge.MaxDuration, batch)
}

func testDryRun(t *testing.T, s suite) {
	db := s.Create(t)
	now := db.Now(t).Truncate(time.Second)
	rows := append(spread(3*batch+1, now.Add(-time.Hour), time.Second), now.Add(time.Hour))
	db.Insert(t, rows...)
	p := policy()
	p.Action = purge.DryRun
	r := s.do(t.Context(), t, s.Engine(), db.Name(), p)
	expect(t, r, purge.Complete, purge.DryRunDone, 0)
	if r.ExpiredRows == nil || *r.ExpiredRows != 3*batch+1 || !at(r.OldestExpiration, s.table.Cutoff(rows[0], 0)) || age(r) < 50*time.Minute {
		t.Errorf("%+v expired, the oldest %s, age %s", r, r.OldestExpiration, age(r))
	}
	p.MaxRows = batch
	if r := s.do(t.Context(), t, s.Engine(), db.Name(), p); r.ExpiredRows == nil || *r.ExpiredRows != batch {
		t.Errorf("with a cap of %d: %+v", batch, r)
	}
	expectLeft(t, db, rows...)
}

func testCheck(t *testing.T, s suite) {
	db := s.Create(t)
	rows := spread(3, db.Now(t).Add(-time.Hour).Truncate(time.Second), time.Second)
	db.Insert(t, rows...)
	p := policy()
	p.Action = purge.Check
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), p), purge.Complete, purge.CheckDone, 0)
	expectLeft(t, db, rows...)
}

func testCheckDefects(t *testing.T, s suite) {
	p := policy()
	p.Action = purge.Check
	index := "expiration-index"
	if !s.indexed() {
		index = "connected"
	}
	for name, c := range map[string]struct {
		stage  func(Database) (code string) // of a finding beside codes
		now    time.Duration                // off the database's clock
		status purge.Status
		level  string
		codes  []string
	}{
		"none":     {func(Database) string { return "connected" }, 0, purge.Complete, "info", []string{"connected", "clock", "version", "rights", index, "time-zone", "size", "expired-rows"}},
		"no index": {func(db Database) string { db.DropIndex(t); return "missing-expiration-index" }, 0, purge.Complete, "warning", nil},
		"no right": {func(db Database) string { return db.Revoke(t, "DELETE") }, 0, purge.Failed, "error", nil},
		"no look":  {func(db Database) string { return db.Revoke(t, "SELECT") }, 0, purge.Failed, "error", nil},
		"no table": {func(db Database) string { db.DropTable(t); return "no-table" }, 0, purge.Failed, "error", nil},
		"backlog":  {func(db Database) string { db.Insert(t, db.Now(t).Add(-7*time.Hour)); return "backlog" }, 0, purge.Complete, "warning", nil},
		"a clock":  {func(Database) string { return "clock-skew" }, -time.Hour, purge.Failed, "error", nil},
	} {
		db := s.Create(t)
		rows := []time.Time{db.Now(t).Add(time.Hour).Truncate(time.Second)}
		db.Insert(t, rows...)
		codes := append(slices.Clone(c.codes), c.stage(db))
		engine := hooked{Engine: s.Engine()}
		if c.now != 0 {
			engine.now = db.Now(t).Add(c.now)
		}
		r := s.do(t.Context(), t, engine, db.Name(), p)
		if r.Status != c.status || (r.Status == purge.Failed) != (r.Error != "") {
			t.Errorf("%s: %s, want %s; error %q", name, r.Status, c.status, r.Error)
		}
		for _, code := range codes {
			found := slices.IndexFunc(r.Findings, func(f purge.Finding) bool { return f.Code == code && f.Level == c.level })
			if found < 0 || len(r.Findings[found].Message) < 10 {
				t.Errorf("%s: no %s %s in %v", name, c.level, code, r.Findings)
			}
			if c.status == purge.Failed && found >= 0 && !strings.Contains(r.Error, r.Findings[found].Message) {
				t.Errorf("%s: error %q", name, r.Error)
			}
		}
	}
}

func testCap(t *testing.T, s suite) {
	for _, index := range []bool{true, false} {
		db := s.Create(t)
		if !index {
			db.DropIndex(t)
		}
		now := db.Now(t).Truncate(time.Second)
		db.Insert(t, spread(5*batch, now.Add(-time.Hour), time.Second)...)
		p := policy()
		p.MaxRows = 2*batch + 3
		expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), p), purge.Partial, purge.MaxRows, 2*batch+3)
		if left := len(db.Expirations(t)); left != 3*batch-3 {
			t.Errorf("index %t: %d rows are left", index, left)
		}
	}
	// Equal rows that can't be told apart are no reason to go above the cap.
	db := s.Create(t)
	db.Insert(t, spread(2*batch, db.Now(t).Add(-time.Hour), 0)...)
	p := policy()
	p.MaxRows = batch / 2
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), p), purge.Partial, purge.MaxRows, batch/2)
}

func testConcurrency(t *testing.T, s suite) {
	const n = 30*batch + 3
	for name, stage := range map[string]func(Database, time.Time){
		"windows":  func(db Database, at time.Time) { db.Insert(t, spread(n, at, time.Second)...) },
		"no index": func(db Database, at time.Time) { db.DropIndex(t); db.Insert(t, spread(n, at, time.Second)...) },
		"equal":    func(db Database, at time.Time) { db.Insert(t, spread(n, at, 0)...) },
	} {
		db := s.Create(t)
		now := db.Now(t).Truncate(time.Second)
		live := spread(batch, now.Add(time.Hour), time.Minute)
		stage(db, now.Add(-time.Hour))
		db.Insert(t, live...)
		statements := db.Record(t)
		p := policy()
		p.Concurrency = 3
		expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), p), purge.Complete, purge.Drained, n)
		expectLeft(t, db, live...)
		deleted := 0
		for _, rows := range statements() {
			deleted += rows
		}
		if deleted != n {
			t.Errorf("%s: the server deleted %d rows, not %d", name, deleted, n)
		}
		if name != "windows" {
			continue
		}
		db.Insert(t, spread(n, now.Add(-time.Hour), time.Second)...)
		p.MaxRows = 20*batch + 7
		expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), p), purge.Partial, purge.MaxRows, int(p.MaxRows))
		if left := len(db.Expirations(t)); left != n+batch-int(p.MaxRows) {
			t.Errorf("%d rows are left", left)
		}
	}
}

// With a target, quick batches are sent to the server several at a time.
func testAhead(t *testing.T, s suite) {
	const n = 40*batch + 3
	for name, trouble := range map[string]func(db Database, rows []time.Time) (e hooked, kept []time.Time){
		"none": func(Database, []time.Time) (hooked, []time.Time) { return hooked{}, nil },
		"a locked row": func(db Database, rows []time.Time) (hooked, []time.Time) {
			t.Cleanup(db.Lock(t, rows[n/2]))
			return hooked{}, rows[n/2 : n/2+1]
		},
		"a lost connection": func(db Database, _ []time.Time) (hooked, []time.Time) {
			return hooked{deleted: func(n int) {
				if n == 12 {
					db.Disconnect(t)
				}
			}}, nil
		},
	} {
		db := s.Create(t)
		rows := spread(n, db.Now(t).Add(-time.Hour).Truncate(time.Second), time.Second)
		db.Insert(t, rows...)
		statements := db.Record(t)
		p := policy()
		p.BatchTarget = time.Second
		open := opening(t, s, db)
		engine, kept := trouble(db, rows)
		if engine.Engine = s.Engine(); kept != nil {
			p.MaxDuration = 6*time.Second + 4*open
		}
		r := s.do(t.Context(), t, engine, db.Name(), p)
		if kept == nil {
			expect(t, r, purge.Complete, purge.Drained, n)
		} else {
			expect(t, r, purge.Partial, purge.MaxDuration, n-len(kept))
		}
		expectLeft(t, db, kept...)
		deleted, most := 0, 0
		for _, rows := range statements() {
			deleted, most = deleted+rows, max(most, rows)
		}
		if deleted != n-len(kept) || most > batch {
			t.Errorf("%s: the server deleted %d rows, %d at once", name, deleted, most)
		}
	}
}

func testCapEnough(t *testing.T, s suite) {
	db := s.Create(t)
	db.Insert(t, spread(2*batch, db.Now(t).Add(-time.Hour), time.Second)...)
	p := policy()
	p.MaxRows = 2 * batch
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), p), purge.Complete, purge.Drained, 2*batch)
}

func testTwoPurgers(t *testing.T, s suite) {
	db := s.Create(t)
	db.Insert(t, spread(3*batch, db.Now(t).Add(-time.Hour), time.Second)...)
	first := s.do(t.Context(), t, hooked{Engine: s.Engine(), deleted: func(n int) {
		if n == 1 {
			expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), policy()), purge.Partial, purge.AlreadyRunning, 0)
			p := policy()
			p.Action = purge.DryRun // only looks
			if r := s.do(t.Context(), t, s.Engine(), db.Name(), p); r.ExpiredRows == nil || *r.ExpiredRows != 2*batch {
				t.Errorf("a dry run beside a purge: %+v", r)
			}
		}
	}}, db.Name(), policy())
	expect(t, first, purge.Complete, purge.Drained, 3*batch)
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), policy()), purge.Complete, purge.Drained, 0)
}

func testDeadPurger(t *testing.T, s suite) {
	db := s.Create(t)
	table, err := s.Engine().Open(t.Context(), db.Name(), s.table, true)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	expect(t, s.do(t.Context(), t, s.Engine(), db.Name(), policy()), purge.Partial, purge.AlreadyRunning, 0)
	db.Disconnect(t)
	r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
	for n := 0; r.StopReason == purge.AlreadyRunning && n < 100; n++ { // a session may be seen to end before its locks do
		time.Sleep(50 * time.Millisecond)
		r = s.do(t.Context(), t, s.Engine(), db.Name(), policy())
	}
	expect(t, r, purge.Complete, purge.Drained, 0)
}

func testLocked(t *testing.T, s suite) {
	db := s.Create(t)
	rows := spread(5*batch, db.Now(t).Add(-time.Hour).Truncate(time.Second), time.Second)
	db.Insert(t, rows...)
	locked := rows[batch+3]
	p := policy()
	p.MaxDuration = 6*time.Second + 4*opening(t, s, db)
	release := db.Lock(t, locked)
	defer release()
	r := s.do(t.Context(), t, s.Engine(), db.Name(), p)
	expect(t, r, purge.Partial, purge.MaxDuration, len(rows)-1)
	expectLeft(t, db, locked)
	if !finding(r, "locked-rows") {
		t.Errorf("no finding locked-rows: %+v", r)
	}
}

func testUnlocked(t *testing.T, s suite) {
	db := s.Create(t)
	rows := spread(3*batch, db.Now(t).Add(-time.Hour).Truncate(time.Second), time.Second)
	db.Insert(t, rows...)
	release := db.Lock(t, rows[0])
	r := s.do(t.Context(), t, hooked{Engine: s.Engine(), deleted: func(n int) {
		if n == 3 { // the first batch met the lock, two others went
			release()
		}
	}}, db.Name(), policy())
	expect(t, r, purge.Complete, purge.Drained, len(rows))
	if finding(r, "locked-rows") {
		t.Error("finding locked-rows although none is left")
	}
}

func testKept(t *testing.T, s suite) {
	db := s.Create(t)
	db.Insert(t, spread(3, db.Now(t).Add(-time.Hour), time.Second)...)
	db.Keep(t)
	r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
	expect(t, r, purge.Failed, purge.Errored, 0)
	if !strings.Contains(r.Error, "trigger") {
		t.Errorf("error %q", r.Error)
	}
}

func testDisconnect(t *testing.T, s suite) {
	db := s.Create(t)
	db.Insert(t, spread(5*batch, db.Now(t).Add(-time.Hour), time.Second)...)
	statements := db.Record(t)
	r := s.do(t.Context(), t, hooked{Engine: s.Engine(), deleted: func(n int) {
		if n == 2 {
			db.Disconnect(t)
		}
	}}, db.Name(), policy())
	expect(t, r, purge.Complete, purge.Drained, 5*batch)
	expectLeft(t, db)
	sum := 0
	for _, n := range statements() {
		sum += n
	}
	if sum != 5*batch || r.Error != "" {
		t.Errorf("the server deleted %d rows; error %q", sum, r.Error)
	}
}

func testNoTable(t *testing.T, s suite) {
	db := s.Create(t)
	db.DropTable(t)
	r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
	expect(t, r, purge.Failed, purge.Errored, 0)
	if !strings.Contains(r.Error, "does not exist in database "+db.Name()) {
		t.Errorf("error %q", r.Error)
	}
}

func testNoRight(t *testing.T, s suite) {
	for _, right := range []string{"DELETE", "SELECT"} {
		db := s.Create(t)
		db.Insert(t, db.Now(t).Add(-time.Hour))
		code := db.Revoke(t, right)
		r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
		expect(t, r, purge.Failed, purge.Errored, 0)
		for _, want := range []string{"GRANT SELECT", "DELETE ON " + s.table.Schema + ".", "role.sql"} {
			if !strings.Contains(r.Error, want) {
				t.Errorf("error %q, want %q", r.Error, want)
			}
		}
		if len(r.Findings) == 0 || r.Findings[0] != (purge.Finding{Level: purge.LevelError, Code: code, Message: r.Error}) {
			t.Errorf("%s: %+v", right, r.Findings)
		}
	}
}

func testUnfit(t *testing.T, s suite) {
	for _, stage := range []func(Database) (name, code string){
		func(db Database) (string, string) { db.DropTable(t); return db.Name(), "no-table" },
		func(db Database) (string, string) { return db.Name(), db.Revoke(t, "SELECT") },
		func(db Database) (string, string) { return db.Name(), db.Revoke(t, "DELETE") },
		func(db Database) (string, string) { return "No_Such_Database", "no-database" },
	} {
		name, code := stage(s.Create(t))
		for _, action := range []purge.Action{purge.Purge, purge.DryRun, purge.Check} {
			if code == "no-delete-right" && action == purge.DryRun { // does without
				continue
			}
			p := policy()
			p.Action = action
			for matched, want := range map[bool]struct {
				status purge.Status
				reason purge.StopReason
				level  string
			}{true: {purge.Failed, purge.Errored, "error"}, false: {purge.Failed, purge.Errored, "error"}} {
				if matched && code == "no-table" { // alone
					want.status, want.reason, want.level = purge.Skipped, purge.SkippedReason, "info"
				}
				r := s.doIn(t.Context(), t, s.Engine(), purge.Database{Name: name, Matched: matched}, p)
				expect(t, r, want.status, want.reason, 0)
				if !slices.ContainsFunc(r.Findings, func(f purge.Finding) bool { return f.Code == code && f.Level == want.level }) {
					t.Errorf("%s, matched %t: no %s %s in %+v", action, matched, want.level, code, r.Findings)
				}
			}
		}
	}
}

func testNoDatabase(t *testing.T, s suite) {
	r := s.do(t.Context(), t, s.Engine(), "No_Such_Database", policy())
	expect(t, r, purge.Failed, purge.Errored, 0)
	if !strings.Contains(r.Error, "No_Such_Database does not exist") {
		t.Errorf("error %q", r.Error)
	}
}

func testEmpty(t *testing.T, s suite) {
	for _, index := range []bool{true, false} {
		db := s.Create(t)
		if !index {
			db.DropIndex(t)
		}
		live := spread(3, db.Now(t).Add(time.Hour).Truncate(time.Second), time.Minute)
		r := s.do(t.Context(), t, s.Engine(), db.Name(), policy())
		expect(t, r, purge.Complete, purge.Drained, 0)
		db.Insert(t, live...)
		r = s.do(t.Context(), t, s.Engine(), db.Name(), policy())
		expect(t, r, purge.Complete, purge.Drained, 0)
		expectLeft(t, db, live...)
		if r.OldestExpiration != nil || age(r) != 0 || r.Batches != 0 || r.Cutoff == nil {
			t.Errorf("oldest %v, age %s, %d batches, cut-off %v", r.OldestExpiration, age(r), r.Batches, r.Cutoff)
		}
	}
}

func testOldestLeft(t *testing.T, s suite) {
	for _, index := range []bool{true, false} {
		db := s.Create(t)
		if !index {
			db.DropIndex(t)
		}
		now := db.Now(t).Truncate(time.Second)
		rows := spread(5*batch, now.Add(-time.Hour), time.Second)
		db.Insert(t, rows...)
		p := policy()
		p.MaxRows, p.StopBefore = 2*batch, time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		r := s.do(ctx, t, hooked{Engine: s.Engine(), now: now}, db.Name(), p)
		expect(t, r, purge.Partial, purge.MaxRows, 2*batch)
		left := db.Expirations(t)
		if len(left) == 0 {
			t.Fatal("no row is left")
		}
		if want := now.Sub(left[0]) + s.table.Grace; age(r) != want {
			t.Errorf("index %t: age %s, want %s", index, age(r), want)
		}
	}
}

func testManyDatabases(t *testing.T, s suite) {
	var names []string
	var good []Database
	for i := range 5 {
		db := s.Create(t)
		db.Insert(t, spread(batch+1, db.Now(t).Add(-time.Hour), time.Second)...)
		if names = append(names, db.Name()); i == 2 {
			db.DropTable(t)
			continue
		}
		good = append(good, db)
	}
	p := policy()
	p.Parallel = 2
	reported := 0
	target := purge.Target{Engine: s.Engine(), Tables: []purge.Table{s.table}, Databases: purge.Select(names...).Resolve(nil, false), Log: quiet}
	result := purge.Run(t.Context(), target, p, func(purge.DatabaseResult) { reported++ })
	if result.Status != purge.Failed || result.DeletedRows != 4*(batch+1) || reported != 5 {
		t.Errorf("%s, %d rows, %d reports", result.Status, result.DeletedRows, reported)
	}
	for i, d := range result.Databases {
		if d.Database != names[i] || (d.Status == purge.Failed) != (i == 2) {
			t.Errorf("result %d: %+v", i, d)
		}
	}
	if err := result.Err(); err == nil || !strings.Contains(err.Error(), names[2]) || !strings.Contains(err.Error(), "1 of 5") {
		t.Errorf("error %v", err)
	}
	for _, db := range good {
		expectLeft(t, db)
	}

	// The cap holds over all of them together.
	for _, db := range good {
		db.Insert(t, spread(batch, db.Now(t).Add(-time.Hour), time.Second)...)
	}
	p.MaxRows = 2*batch + 5
	target.Databases = slices.Delete(target.Databases, 2, 3)
	if result := purge.Run(t.Context(), target, p, func(purge.DatabaseResult) {}); result.DeletedRows != p.MaxRows || result.Status != purge.Partial {
		t.Errorf("%s", fmt.Sprintf("%s with %d rows, the cap is %d", result.Status, result.DeletedRows, p.MaxRows))
	}
}

func testTroubles(t *testing.T, s suite) {
	engines := routed{}
	target := purge.Target{Engine: engines, Tables: []purge.Table{s.table}, Log: quiet}
	create := func(matched bool, rows int) Database {
		db := s.Create(t)
		db.Insert(t, spread(rows, db.Now(t).Add(-time.Hour), time.Second)...)
		engines[db.Name()] = s.Engine()
		target.Databases = append(target.Databases, purge.Database{Name: db.Name(), Matched: matched})
		return db
	}
	good := create(true, batch+1)
	noTable := create(true, 1)
	noTable.DropTable(t)
	noRight := create(true, 1)
	noRight.Revoke(t, "DELETE")
	held := create(true, 1)
	holder, err := s.Engine().Open(t.Context(), held.Name(), s.table, true)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	broken := create(true, 3*batch)
	engines[broken.Name()] = hooked{Engine: s.Engine(), deleted: func(n int) {
		if n == 2 {
			broken.Disconnect(t)
		}
	}}
	backlog := create(true, 20*batch)
	open := opening(t, s, good)
	backlog.Delay(t, 150*time.Millisecond+open/4) // half a minute in all, at least
	target.Databases = append(target.Databases,
		purge.Database{Name: "template", Matched: true, Closed: "it is a template"}, purge.Database{Name: "No_Such_Database"})

	p := policy()
	p.Parallel, p.MaxDuration = 2, 10*time.Second+24*open
	result := purge.Run(t.Context(), target, p, func(purge.DatabaseResult) {})
	want := []struct {
		status  purge.Status
		deleted int64 // -1 is some, but not all
	}{
		{purge.Complete, batch + 1},
		{purge.Skipped, 0},
		{purge.Failed, 0},
		{purge.Partial, 0},
		{purge.Complete, 3 * batch},
		{purge.Partial, -1},
		{purge.Skipped, 0},
		{purge.Failed, 0},
	}
	for i, r := range result.Databases {
		deleted := r.DeletedRows
		if want[i].deleted == -1 && deleted > 0 && deleted < 20*batch {
			deleted = -1
		}
		if r.Status != want[i].status || deleted != want[i].deleted {
			t.Errorf("database %d: %s / %s with %d rows, want %s with %d: %s", i, r.Status, r.StopReason, r.DeletedRows, want[i].status, want[i].deleted, r.Error)
		}
	}
	expectLeft(t, good)
	if left := len(backlog.Expirations(t)); int64(left) != 20*batch-result.Databases[5].DeletedRows {
		t.Errorf("%d rows are left of the backlog", left)
	}
	if err := result.Err(); err == nil || !strings.Contains(err.Error(), "2 of 8") {
		t.Errorf("%v", err)
	}
}
