package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

var update = flag.Bool("update", false, "write the golden files anew")

// many returns so many results like d, each with a name of its own.
func many(n int, d purge.DatabaseResult) (all []purge.DatabaseResult) {
	for i := range n {
		d.Database, d.Engine, d.Server, d.DurationMs = fmt.Sprintf("EdFi_Admin_%04d", i), "postgres", "db.example.org:5432", int64(80+i)
		all = append(all, d)
	}
	return all
}

// sampleResults are results, by the name of their golden file.
func sampleResults() map[string]purge.Result {
	fine := []purge.Finding{purge.Connected.Found("connected, logged in and examined in 12 ms"), purge.Version.Found("PostgreSQL 15.4"), purge.ExpiredRows.Found("12 rows have expired, the oldest at 2026-11-26T19:00:00Z")}
	oldest := purge.Instant{Time: time.Date(2026, 11, 26, 18, 30, 0, 0, time.UTC)}
	healthy := purge.Result{Status: purge.Complete, Action: purge.Check, DurationMs: 912, Databases: many(60, purge.DatabaseResult{Status: purge.Complete, Findings: fine})}

	hundreds := healthy
	hundreds.Databases = many(600, healthy.Databases[0])

	mixed := many(64, purge.DatabaseResult{Status: purge.Complete, Findings: fine[:1:1]})
	missing := purge.MissingExpirationIndex.Found("no index finds rows by their expiration, so each run reads the whole table once. Create it: CREATE INDEX CONCURRENTLY ix_clientaccesstokens_expiration ON dbo.clientaccesstokens (expiration DESC);")
	for i := 10; i < 20; i++ {
		mixed[i].Findings = append(mixed[i].Findings, missing)
		mixed[i].DeletedRows, mixed[i].Batches = int64(1000*i), i
	}
	mixed[3].Status, mixed[3].StopReason = purge.Partial, purge.Deadline
	mixed[5].Status, mixed[5].Error = purge.Failed, "the login may not delete tokens: run infra/postgres/role.sql; or exclude the database: add !EdFi_Admin_0005 to DATABASES"
	mixed[5].Findings = []purge.Finding{purge.NoDeleteRight.Found(mixed[5].Error)}
	mixed[7].Database = "A_database_whose_name_is_as_long_as_PostgreSQL_lets_it_be_which_is_63"
	mixed[7].DeletedRows, mixed[7].Batches = 1_234_567, 247

	counted := many(3, purge.DatabaseResult{Status: purge.Complete, ExpiredRows: new(int64(1500)), OldestExpiration: &oldest})
	uncounted := many(3, purge.DatabaseResult{Status: purge.Complete, ExpiredRows: new(int64(1500)), OldestExpiration: &oldest})
	uncounted[1].ExpiredRows, uncounted[1].Status, uncounted[1].StopReason = nil, purge.Partial, purge.MaxDuration

	tokens, other := many(1, counted[0])[0], many(1, counted[0])[0]
	tokens.Table, other.Table = purge.ClientAccessTokens.Name, purge.AdminTokens.Name
	other.Local, other.OldestExpiration = true, &purge.Instant{Time: oldest.Add(-30 * time.Hour)}
	estate := many(2, purge.DatabaseResult{Status: purge.Complete, ExpiredRows: new(int64(3000)), Local: true, OldestExpiration: other.OldestExpiration, Tables: []purge.DatabaseResult{tokens, other}})
	estate[1].Tables = estate[1].Tables[:1]
	estate[1].ExpiredRows, estate[1].Local, estate[1].OldestExpiration = tokens.ExpiredRows, false, &oldest

	one := many(1, purge.DatabaseResult{Status: purge.Complete, DeletedRows: 1_500_001, Batches: 301, Findings: []purge.Finding{purge.Throttled.Found("others write to the server, and this run made way for 2.1s")}})
	return map[string]purge.Result{
		"check":     healthy,
		"check-600": hundreds,
		"purge":     {Status: purge.Failed, Action: purge.Purge, DeletedRows: 1_379_567, DurationMs: 65_000, Databases: mixed},
		"dry-run":   {Status: purge.Complete, Action: purge.DryRun, DurationMs: 200, Databases: counted},
		"estate":    {Status: purge.Complete, Action: purge.DryRun, DurationMs: 200, Databases: estate},
		"uncounted": {Status: purge.Partial, Action: purge.DryRun, DurationMs: 200, Databases: uncounted},
		"one":       {Status: purge.Complete, Action: purge.Purge, DeletedRows: 1_500_001, DurationMs: 2410, Databases: one},
		"one-check": {Status: purge.Complete, Action: purge.Check, DurationMs: 80, Databases: many(1, purge.DatabaseResult{Status: purge.Complete, Findings: append(fine[:3:3], missing)})},
	}
}

// screen is how many lines a terminal has.
const screen = 24

func TestAResultIsShownAsItsGoldenFileSays(t *testing.T) {
	for name, result := range sampleResults() {
		for _, columns := range []int{80, 120} {
			var b strings.Builder
			view{columns: columns}.write(&b, result)
			golden := filepath.Join("testdata", "view", fmt.Sprintf("%s-%d.txt", name, columns))
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || b.String() != string(want) {
				t.Errorf("%s: %v\n%s", golden, err, b.String())
			}
			lines := strings.Split(strings.TrimSpace(b.String()), "\n")
			for _, line := range lines {
				if width(line) > columns && !strings.Contains(line, "A_database_whose_name") {
					t.Errorf("%d columns are too few for %q", columns, line)
				}
			}
			if verdict := lines[len(lines)-1]; !strings.HasPrefix(verdict, string(result.Status)+": ") {
				t.Errorf("the verdict is no line, it ends with %q", verdict)
			}
			if strings.HasPrefix(name, "check") && len(lines) >= screen { // the prompt is one more
				t.Errorf("%d healthy databases take %d lines", len(result.Databases), len(lines))
			}
		}
	}
}

func TestTheListOfNamesTakesTheRoomThatThereIs(t *testing.T) {
	warned := sampleResults()["check"]
	warned.Databases = slices.Clone(warned.Databases)
	for i := range warned.Databases {
		warned.Databases[i].Findings = append(warned.Databases[i].Findings[:3:3], purge.NoTLS.Found("the connection is not encrypted: set DB_TLS to verify-full"))
	}
	for rows, want := range map[int]string{0: "  and 12 more\n", screen: "  and 12 more\n", 30: "EdFi_Admin_0059\n", 10: "  and 52 more\n"} {
		var b strings.Builder
		view{columns: 80, rows: rows}.write(&b, warned)
		if lines := strings.Count(b.String(), "\n"); rows >= screen && lines >= rows || !strings.Contains(b.String(), want) || !strings.Contains(b.String(), "in all 60 databases\n") {
			t.Errorf("%d lines of %d, without %q\n%s", lines, rows, want, b.String())
		}
	}
}

func TestThousandsOfDatabasesHaveACommaToo(t *testing.T) {
	for status, want := range map[purge.Status]string{purge.Complete: "in 1,200 databases (", purge.Partial: "\npartial: 1,200 of 1,200 databases not done; "} {
		var b strings.Builder
		view{columns: 80}.write(&b, purge.Result{Status: status, Action: purge.Purge, Databases: many(1200, purge.DatabaseResult{Status: status, StopReason: purge.Deadline})})
		if !strings.Contains(b.String(), want) || strings.Contains(b.String(), "1200") {
			t.Errorf("no %q in\n%s", want, b.String()[max(0, b.Len()-500):])
		}
	}
}

// What the README shows is what the command writes.
func TestTheReadmeShowsWhatIsWritten(t *testing.T) {
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	oldest := purge.Instant{Time: time.Date(2026, 11, 25, 19, 8, 58, 0, time.UTC)}
	later := purge.Instant{Time: oldest.Add(time.Minute)}
	pair := func(a, b purge.DatabaseResult) []purge.DatabaseResult {
		both := append(many(1, a), many(1, b)...)
		both[0].Database, both[1].Database = "EdFi_Admin_Tenant1", "EdFi_Admin_Tenant2"
		both[0].DurationMs, both[1].DurationMs = a.DurationMs, b.DurationMs
		return both
	}
	checked := func(expired string) (found []purge.Finding) {
		for _, k := range []purge.Kind{
			purge.Connected, purge.Clock, purge.TLS, purge.Version, purge.TimeZone, purge.Rights, purge.ExpirationIndex, purge.Size, purge.NoOtherCleaner,
		} {
			found = append(found, k.Found("as it should be"))
		}
		return append(found, purge.Backlog.Found(expired+": run purges until the status is complete"))
	}
	for _, result := range []purge.Result{
		{Status: purge.Complete, Action: purge.Check, DurationMs: 320, Databases: pair(
			purge.DatabaseResult{Status: purge.Complete, DurationMs: 310, Findings: checked("1,500,000 rows have expired, the oldest at 2026-11-25T19:08:58.293811Z")},
			purge.DatabaseResult{Status: purge.Complete, DurationMs: 80, Findings: checked("412,090 rows have expired, the oldest at 2026-11-25T19:09:12.047025Z")})},
		{Status: purge.Complete, Action: purge.DryRun, DurationMs: 312, Databases: pair(
			purge.DatabaseResult{Status: purge.Complete, DurationMs: 310, ExpiredRows: new(int64(1_500_000)), OldestExpiration: &oldest},
			purge.DatabaseResult{Status: purge.Complete, DurationMs: 80, ExpiredRows: new(int64(412_090)), OldestExpiration: &later})},
		{Status: purge.Complete, Action: purge.Purge, DurationMs: 1240, DeletedRows: 1_912_090, Databases: pair(
			purge.DatabaseResult{Status: purge.Complete, DurationMs: 1240, DeletedRows: 1_500_000, Batches: 312},
			purge.DatabaseResult{Status: purge.Complete, DurationMs: 440, DeletedRows: 412_090, Batches: 88})},
		{Status: purge.Failed, Action: purge.Purge, DurationMs: 190, Databases: pair(
			purge.DatabaseResult{Status: purge.Complete, DurationMs: 190},
			purge.DatabaseResult{Status: purge.Failed, DurationMs: 10, Error: "the login may not delete tokens: run infra/postgres/role.sql, or for the role of the login " +
				"GRANT USAGE ON SCHEMA dbo TO edfi_token_purge; GRANT SELECT (ctid, expiration), DELETE ON dbo.clientaccesstokens TO edfi_token_purge;"})},
	} {
		var b strings.Builder
		view{}.write(&b, result)
		if !strings.Contains(string(page), "```text\n"+b.String()+"```") {
			t.Errorf("the README has no\n%s", b.String())
		}
	}
}

func TestWithVerboseEachDatabaseHasARowAndEachFindingItsNames(t *testing.T) {
	var b strings.Builder
	view{columns: 80, verbose: true}.write(&b, sampleResults()["purge"])
	for _, d := range sampleResults()["purge"].Databases {
		if !strings.Contains(b.String(), "  "+d.Database+"\n") {
			t.Errorf("%s has no row", d.Database)
		}
	}
	if !strings.Contains(b.String(), "info connected in EdFi_Admin_0000, EdFi_Admin_0001") {
		t.Error(b.String())
	}
}

func TestColoursAreForTerminalsAndTakeNoRoom(t *testing.T) {
	plain, coloured := new(strings.Builder), new(strings.Builder)
	view{columns: 80}.write(plain, sampleResults()["purge"])
	view{columns: 80, colour: true}.write(coloured, sampleResults()["purge"])
	text := coloured.String()
	for _, colour := range append([]string{"\x1b[0m"}, colours["failed"], colours["warning"]) {
		if !strings.Contains(text, colour) {
			t.Errorf("no %q", colour)
		}
		text = strings.ReplaceAll(text, colour, "")
	}
	if text != plain.String() {
		t.Errorf("%s\nwant\n%s", text, plain)
	}
}

func TestOfSeveralTablesEachThingIsToldOnce(t *testing.T) {
	refused := purge.NoDeleteRight.Found("adminapi.Tokens: the login may not delete tokens")
	infos := []purge.Finding{purge.ExpiredRows.Found("ClientAccessTokens: no row has expired"), purge.ExpiredRows.Found("adminapi.Tokens: 12 rows have expired")}
	d := purge.DatabaseResult{
		Status: purge.Failed, Error: "adminapi.Tokens: no-delete-right: the login may not delete tokens", Findings: append([]purge.Finding{refused}, infos...),
		Tables: []purge.DatabaseResult{{Table: purge.ClientAccessTokens.Name}, {Table: purge.AdminTokens.Name}},
	}
	for n, want := range map[int]bool{1: true, 10: false} { // many go to -v
		d.Findings = append([]purge.Finding{refused}, slices.Repeat(infos, n)...)
		var b strings.Builder
		view{}.write(&b, purge.Result{Status: purge.Failed, Action: purge.Check, Databases: []purge.DatabaseResult{d}})
		if strings.Count(b.String(), "may not delete tokens") != 1 || want != strings.Contains(b.String(), infos[1].Message) || want == strings.Contains(b.String(), "(-v tells)") {
			t.Errorf("%d of each\n%s", n, b.String())
		}
	}
}
