package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/fakeaws"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

// These tests run the function from outside: the real binary, as Lambda starts
// it, on a real PostgreSQL.

var stage *rig.Rig

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		return m.Run() // the parsers need no stage, and each process of a fuzz test would set one up
	}
	dir, err := os.MkdirTemp("", "bootstrap-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "bootstrap")
	if out, err := exec.Command("go", "build", "-tags", "lambda.norpc", "-o", binary, ".").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	if stage, err = rig.New(context.Background(), binary, pgserver.Options{Settings: map[string]string{"fsync": "off"}}); err != nil {
		panic(err)
	}
	defer stage.Close()
	return m.Run()
}

const scheduled = `{"version":"0","id":"53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa","detail-type":"Scheduled Event","source":"aws.events","account":"123456789012","time":"2026-11-23T14:00:00Z","region":"us-east-1","resources":[],"detail":{}}`

func TestAScheduledEventDeletesWhatExpiredAndPublishesTheNumber(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 12_000, 300)
	reply, lines := db.start(t).invoke(t, scheduled)
	r := db.result(t, reply)
	if r.Status != "complete" || r.StopReason != "drained" || r.DeletedRows != 12_000 || r.Batches < 3 || // more where other tests write
		r.Engine != "postgres" || r.Server != fmt.Sprintf("127.0.0.1:%d", stage.Postgres.Port) || r.OldestExpiration == nil {
		t.Errorf("%+v", r)
	}
	for _, f := range r.Findings {
		if f.Code != "throttled" { // other tests write
			t.Errorf("findings %v", r.Findings)
		}
	}
	db.expect(t, 0, 300)
	m := oneMetric(t, lines)
	want := metric{
		Database: db.name, FunctionName: "purge-tokens", DeletedRows: 12_000, Batches: int(r.Batches),
		StopReason: "drained", Engine: "postgres", RequestID: reply.RequestID, Version: "dev", Cutoff: r.Cutoff.String(), Duration: m.Duration, AWS: m.AWS,
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("metric\n%+v, want\n%+v", m, want)
	}
	if d := m.AWS.CloudWatchMetrics; d[0].Namespace != "EdFi/TokenPurge" || !reflect.DeepEqual(dimensions(m), [][]string{{"FunctionName"}, {"FunctionName", "Database"}}) {
		t.Errorf("%+v", d)
	}
	if !strings.Contains(lines, "requestId="+reply.RequestID) {
		t.Errorf("no request id in the log:\n%s", lines)
	}
	if !strings.Contains(lines, "version=dev commit=unknown") {
		t.Errorf("no version in the log:\n%s", lines)
	}
}

func TestMetricsForEachDatabaseCanBeLeftOut(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 5, 5)
	_, lines := db.start(t, "METRICS_PER_DATABASE=false").invoke(t, `{}`)
	m := oneMetric(t, lines)
	if !reflect.DeepEqual(dimensions(m), [][]string{{"FunctionName"}}) || m.Database != db.name || m.DeletedRows != 5 {
		t.Errorf("%+v", m)
	}
}

// dimensions returns the dimension sets of all directives.
func dimensions(m metric) (sets [][]string) {
	for _, d := range m.AWS.CloudWatchMetrics {
		sets = append(sets, d.Dimensions...)
	}
	return sets
}

// The other tests read results with the types that write them, so only this one
// checks the names.
func TestTheResultHasTheFieldsThatUsersRelyOn(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 30, 3)
	reply, _ := db.start(t, never).invoke(t, `{}`)
	var r struct{ Databases []map[string]json.RawMessage }
	var top map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(reply.Payload, &r), json.Unmarshal(reply.Payload, &top)); err != nil || len(r.Databases) != 1 {
		t.Fatalf("%v: %s", err, reply.Payload)
	}
	for of, c := range map[string]struct {
		fields map[string]json.RawMessage
		want   string // names, and values where they are known
	}{
		"the run": {top, `status="complete" action="purge" deletedRows=30 durationMs databases`},
		"the database": {r.Databases[0], `database="` + db.name + `" engine="postgres" server status="complete" stopReason="drained" ` +
			`deletedRows=30 batches cutoff oldestExpiration durationMs findings=[]`},
	} {
		for want := range strings.FieldsSeq(c.want) {
			name, value, known := strings.Cut(want, "=")
			if got, ok := c.fields[name]; !ok || known && string(got) != value {
				t.Errorf("%s: %s is %s, want %s", of, name, got, value)
			}
		}
	}
	if got := string(r.Databases[0]["cutoff"]); !strings.HasSuffix(got, `Z"`) {
		t.Errorf("the cut-off is %s", got)
	}
}

func TestTheLogTellsOfARunInThreeLinesAndOfBatchesWhereAsked(t *testing.T) {
	t.Parallel()
	for level, want := range map[string]map[string]int{
		"INFO":  {"start": 1, "database": 1, "end": 1},
		"DEBUG": {"start": 1, "batch": 3, "database": 1, "end": 1},
	} {
		db := newDatabase(t, 30, 3)
		f := db.start(t, "BATCH_SIZE=10", "AWS_LAMBDA_LOG_FORMAT=JSON", "AWS_LAMBDA_LOG_LEVEL="+level)
		reply, lines := f.invoke(t, `{}`)
		got := map[string]int{}
		for line := range strings.Lines(lines) {
			var record struct{ Message, RequestID string }
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Errorf("%v: %s", err, line)
			}
			if record.Message != "" { // else it is the metric line
				got[record.Message]++
			}
			if record.RequestID != reply.RequestID {
				t.Errorf("no request id: %s", line)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("at level %s %v, want %v", level, got, want)
		}
	}
}

func TestAnEmptyRunPublishesZero(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 0, 5)
	reply, lines := db.start(t).invoke(t, `{}`)
	if r := db.result(t, reply); r.Status != "complete" || r.DeletedRows != 0 || r.OldestExpiration != nil {
		t.Errorf("%+v", r)
	}
	if m := oneMetric(t, lines); m.DeletedRows != 0 || m.Failures != 0 || m.Incomplete != 0 || m.OldestExpiredAge != 0 || !strings.Contains(lines, `"OldestExpiredAge":0`) {
		t.Errorf("%+v", m)
	}
}

func TestADryRunAndACheckDeleteNothing(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 70, 5)
	f := db.start(t)
	reply, lines := f.invoke(t, `{"action":"dry-run"}`)
	if r := db.result(t, reply); r.Status != "complete" || r.StopReason != "dry-run" || r.ExpiredRows == nil || *r.ExpiredRows != 70 || r.DeletedRows != 0 {
		t.Errorf("%+v", r)
	}
	if m := oneMetric(t, lines); m.OldestExpiredAge < 85_000 || m.StopReason != "dry-run" {
		t.Errorf("%+v", m)
	}
	reply, _ = f.invoke(t, `{"action":"check"}`)
	if r := db.result(t, reply); r.Status != "complete" || r.StopReason != "check" {
		t.Errorf("%+v", r)
	}
	db.expect(t, 70, 5)
}

func TestARequestNarrowsTheConfiguration(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 100, 5)
	f := db.start(t, "MAX_ROWS=50", "BATCH_SIZE=20", "GRACE_PERIOD=1h")
	reply, lines := f.invoke(t, `{"maxRows":30,"batchSize":10,"gracePeriod":"2h","databases":["`+db.name+`"]}`)
	if m := oneMetric(t, lines); m.Incomplete != 1 || m.Failures != 0 {
		t.Errorf("%+v", m)
	}
	if r := db.result(t, reply); r.Status != "partial" || r.StopReason != "max-rows" || r.DeletedRows != 30 || r.Batches != 3 {
		t.Errorf("%+v", r)
	}
	reply, _ = f.invoke(t, `{"maxRows":1000,"batchSize":1000,"maxDuration":"1m"}`) // neither exceeds the configuration
	if r := db.result(t, reply); r.DeletedRows != 50 || r.Batches != 3 {
		t.Errorf("%+v", r)
	}
	for event, field := range map[string]string{
		`{"gracePeriod":"59m"}`:             "gracePeriod",
		`{"databases":["postgres"]}`:        "databases",
		`{"databases":["edfi_admin_none"]}`: "databases",
	} {
		reply, lines := f.invoke(t, event)
		expectError(t, reply, "InvalidEvent", field)
		noMetric(t, lines)
	}
	// Expired over a day: 100 rows, of which an hour's worth, about 4, is in grace.
	reply, _ = f.invoke(t, `{}`)
	if r := db.result(t, reply); r.Status != "complete" || r.DeletedRows > 18 || r.DeletedRows < 14 {
		t.Errorf("%+v", r)
	}
}

func TestABadEventIsRefusedBeforeAnythingIsConnectedTo(t *testing.T) {
	t.Parallel()
	// The test has a secret of its own, to see that no function reads it.
	f := start(t, "SECRET_ID=never-asked-for")
	for event, field := range badEvents {
		reply, lines := f.invoke(t, event)
		expectError(t, reply, "InvalidEvent", field)
		noMetric(t, lines)
	}
}

func TestFaultsOfTheConfigurationAreReportedTogetherAndEachTime(t *testing.T) {
	t.Parallel()
	f := start(t, "SECRET_ID=", "BATCH_SIZE=hunter2", "GRACE_PERIOD=-1h", "DB_TLS=hunter2", "METRICS_NAMESPACE=AWS/Lambda")
	for range 2 {
		reply, lines := f.invoke(t, `{}`)
		for _, name := range []string{"SECRET_ID", "BATCH_SIZE", "GRACE_PERIOD", "DB_TLS", "METRICS_NAMESPACE"} {
			expectError(t, reply, "ConfigurationError", name)
		}
		noMetric(t, lines)
		if strings.Contains(lines+reply.Error.Message, "hunter2") {
			t.Errorf("a value is shown:\n%s", lines)
		}
	}
}

func TestASecretThatCannotBeUsedIsASecretError(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ secret, want string }{
		"missing":     {"", "ResourceNotFoundException"},
		"text":        {"hunter2", "JSON object"},
		"no-password": {`{"username":"hunter2"}`, "password is missing"},
		"no-engine":   {`{"username":"u","password":"hunter2","host":"h"}`, "DB_ENGINE"},
		"no-host":     {`{"username":"u","password":"hunter2","engine":"postgres"}`, "DB_HOST"},
		"mysql":       {`{"username":"u","password":"hunter2","engine":"mysql","host":"h"}`, "engine"},
	} {
		id := "bad/" + name
		if c.secret != "" {
			stage.Secrets.Put(id, c.secret)
		}
		reply, lines := start(t, "SECRET_ID="+id).invoke(t, `{}`)
		expectError(t, reply, "SecretError", c.want)
		m := oneMetric(t, lines)
		if m.Failures != 1 || m.Incomplete != 1 || m.Database != "" || strings.Contains(lines, "OldestExpiredAge") || !reflect.DeepEqual(m.AWS.CloudWatchMetrics[0].Dimensions, [][]string{{"FunctionName"}}) {
			t.Errorf("%s: %+v", name, m)
		}
		if strings.Contains(lines+string(reply.Payload), "hunter2") {
			t.Errorf("%s: a value is shown:\n%s", name, lines)
		}
	}
}

func TestARotatedLoginIsFetchedAgainAndTheOneBeforeItIsTried(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 3, 3)
	role := fmt.Sprintf("purge_rotated_%d", created.Add(1))
	set := func(password string) {
		t.Helper()
		if _, err := db.conn.Exec(t.Context(), "ALTER ROLE "+role+" PASSWORD '"+password+"'"); err != nil {
			t.Fatal(err)
		}
	}
	value := func(password string) string {
		return fmt.Sprintf(`{"engine":"postgres","host":"127.0.0.1","port":"%d","username":%q,"password":%q}`, stage.Postgres.Port, role, password)
	}
	if _, err := db.conn.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN SUPERUSER PASSWORD 'pw-first'"); err != nil {
		t.Fatal(err)
	}
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.Close()
	secrets.Put("rotated", value("pw-first"))
	f := db.start(t, "SECRET_ID=rotated", "AWS_ENDPOINT_URL_SECRETS_MANAGER="+secrets.URL())
	expectCalls := func(want int, why string) {
		t.Helper()
		reply, _ := f.invoke(t, `{}`)
		db.result(t, reply)
		if got := secrets.Calls(); got != want {
			t.Errorf("%s: %d calls so far, want %d", why, got, want)
		}
	}
	expectCalls(1, "a cold start")
	expectCalls(2, "the secret is read in each run")
	set("pw-second")
	secrets.Put("rotated", value("pw-second"))
	expectCalls(3, "rotated")
	secrets.Put("rotated", value("pw-third")) // the database does not have it yet
	set("pw-second2")
	secrets.Put("rotated", value("pw-second2"))
	secrets.Put("rotated", value("pw-third"))
	expectCalls(6, "in the middle of a rotation: the current one, once more, then the one before")
	set("hunter2")
	reply, lines := f.invoke(t, `{}`)
	expectError(t, reply, "PurgeFailed", "refused the login")
	if got := secrets.Calls(); got != 9 {
		t.Errorf("%d calls, want 9: three more", got)
	}
	for _, leak := range []string{"pw-first", "pw-second", "pw-third", role} {
		if strings.Contains(lines+reply.Error.Message, leak) {
			t.Errorf("%q is shown", leak)
		}
	}
}

func TestSettingsTakeThePlaceOfWhatTheSecretLacks(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 3, 3)
	stage.Secrets.Put("managed/by-rds", fmt.Sprintf(`{"username":%q,"password":%q}`, stage.Postgres.User, stage.Postgres.Password))
	f := db.start(t, "SECRET_ID=managed/by-rds", "DB_ENGINE=postgres", "DB_HOST=127.0.0.1", fmt.Sprintf("DB_PORT=%d", stage.Postgres.Port))
	reply, _ := f.invoke(t, `{}`)
	if r := db.result(t, reply); r.DeletedRows != 3 {
		t.Errorf("%+v", r)
	}
}

// PostgreSQL cuts a name to 63 bytes.
func TestANameThatTheServerWouldCutOpensNoExcludedDatabase(t *testing.T) {
	t.Parallel()
	excluded := newNamed(t, fmt.Sprintf("%-63s", fmt.Sprintf("kept%d_", created.Add(1)))[:62]+"x", 5, 5)
	long := excluded.name + "_longer"
	for databases, want := range map[string]string{
		excluded.name[:6] + "*,!" + excluded.name: "longer than 63 bytes",
		long:         "longer than 63 bytes",
		"*,!" + long: "none of those",
	} {
		reply, lines := start(t, "DATABASES="+databases).invoke(t, `{"databases":["`+long+`"]}`)
		expectError(t, reply, "InvalidEvent", want)
		noMetric(t, lines)
	}
	for _, databases := range []string{long, "EdFi_Admin_*,!" + long, long + "*"} {
		reply, lines := start(t, "DATABASES="+databases).invoke(t, `{}`)
		expectError(t, reply, "ConfigurationError", "longer than 63 bytes")
		noMetric(t, lines)
	}
	excluded.expect(t, 5, 5)
}

func TestOneFailedDatabaseHidesNoOther(t *testing.T) {
	t.Parallel()
	good, bad := newDatabase(t, 20, 2), newDatabase(t, 20, 2)
	good.witness(t)
	if _, err := bad.conn.Exec(t.Context(), "ALTER TABLE dbo.clientaccesstokens RENAME TO elsewhere"); err != nil {
		t.Fatal(err)
	}
	f := start(t, "DATABASES="+bad.name+", "+good.name+",EdFi_Admin_Nowhere")
	reply, lines := f.invoke(t, `{}`)
	for _, want := range []string{bad.name + " (0 rows deleted): table dbo.clientaccesstokens does not exist", "EdFi_Admin_Nowhere (0 rows deleted): ", "2 of 3"} {
		expectError(t, reply, "PurgeFailed", want)
	}
	good.expect(t, 0, 2)
	failures := map[string]int{}
	for _, m := range metrics(t, lines) {
		if failures[m.Database] = m.Failures; m.Database == good.name {
			good.count(t, 0, m.DeletedRows, 0, 0)
		}
	}
	if _, err := bad.conn.Exec(t.Context(), "ALTER TABLE dbo.elsewhere RENAME TO clientaccesstokens"); err != nil {
		t.Fatal(err)
	}
	bad.expect(t, 20, 2)
	if want := map[string]int{bad.name: 1, good.name: 0, "EdFi_Admin_Nowhere": 1}; !reflect.DeepEqual(failures, want) {
		t.Errorf("%v, want %v", failures, want)
	}
	if strings.Contains(lines+string(reply.Payload), stage.Postgres.Password) {
		t.Error("the password is shown")
	}
}

func TestPatternsFindTheTenantsOfTheDay(t *testing.T) {
	t.Parallel()
	unique := fmt.Sprintf("tenant%d", created.Add(1))
	tenants := []database{newNamed(t, unique+"_a", 20, 2), newNamed(t, unique+"_b", 0, 2), newNamed(t, strings.ToUpper(unique)+"_x", 5, 5)}
	template := newNamed(t, unique+"_template", 5, 5)
	other := newNamed(t, unique+"_other_product", 5, 5)
	for _, sql := range []string{
		`ALTER TABLE dbo.clientaccesstokens RENAME TO elsewhere`,
		`CREATE DATABASE ` + unique + `_is_template IS_TEMPLATE true`,
		`CREATE DATABASE ` + unique + `_offline ALLOW_CONNECTIONS false`,
	} {
		if _, err := other.conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	template.conn.Close(t.Context())
	before := template.sessions(t, other.conn)
	f := start(t, "DATABASES="+unique+"_*,!*_template,"+unique+"_b", "PARALLEL_DATABASES=2", never)
	// The secret names no database, so the catalogue is read in "postgres".
	reply, lines := f.invoke(t, `{}`)
	status := map[string]purge.Status{}
	for _, r := range results(t, reply, "complete", 20) {
		status[r.Database] = r.Status
		if (r.Status == "skipped") != (len(r.Findings) > 0) {
			t.Errorf("%+v", r)
		}
	}
	want := map[string]purge.Status{
		unique + "_a": "complete", unique + "_b": "complete", unique + "_other_product": "skipped",
		unique + "_is_template": "skipped", unique + "_offline": "skipped",
	}
	delete(want, unique+"_is_template") // excluded by name, like tenant_template
	if !reflect.DeepEqual(status, want) {
		t.Errorf("%v, want %v", status, want)
	}
	published := map[string]bool{}
	for _, m := range metrics(t, lines) {
		published[m.Database] = true
	}
	if !reflect.DeepEqual(published, map[string]bool{unique + "_a": true, unique + "_b": true}) {
		t.Errorf("metrics of %v", published)
	}
	if after := template.sessions(t, other.conn); after != before {
		t.Errorf("%d sessions on the excluded template", after-before)
	}
	tenants[2].expect(t, 5, 5)

	// The next run finds a new tenant.
	newNamed(t, unique+"_new", 7, 1).conn.Close(t.Context())
	reply, _ = f.invoke(t, `{}`)
	results(t, reply, "complete", 7)

	// A request names databases outright: they are not skipped.
	for _, name := range []string{unique + "_other_product", unique + "_nowhere"} {
		reply, _ = f.invoke(t, `{"databases":["`+name+`"]}`)
		expectError(t, reply, "PurgeFailed", name)
	}
	reply, _ = f.invoke(t, `{"databases":["`+unique+`_template"]}`)
	expectError(t, reply, "InvalidEvent", "databases")

	reply, lines = start(t, "DATABASES=nothing_like_it*").invoke(t, `{}`)
	expectError(t, reply, "PurgeFailed", "DATABASES")
	if m := oneMetric(t, lines); m.Failures != 1 || m.Database != "" {
		t.Errorf("%+v", m)
	}
}

func TestHundredsOfDatabasesAreServedWithinTheBoundOnConnections(t *testing.T) {
	t.Parallel()
	const many, rows, parallel = 300, 5, 3
	unique := fmt.Sprintf("district%d", created.Add(1))
	model := newNamed(t, unique+"_model", 0, 0)
	if _, err := model.conn.Exec(t.Context(), "INSERT INTO dbo.clientaccesstokens (id, expiration) SELECT gen_random_uuid(), now() - interval '2 days' FROM generate_series(1, "+fmt.Sprint(rows)+")"); err != nil {
		t.Fatal(err)
	}
	model.conn.Close(t.Context())
	admin, err := pgx.Connect(t.Context(), stage.Postgres.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	for i := range many {
		if _, err := admin.Exec(t.Context(), fmt.Sprintf("CREATE DATABASE %s_%d TEMPLATE %[1]s_model", unique, i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.Exec(t.Context(), "CREATE ROLE "+unique+" LOGIN SUPERUSER PASSWORD 'district'"); err != nil {
		t.Fatal(err)
	}
	stage.Secrets.Put(unique, fmt.Sprintf(`{"engine":"postgres","host":"127.0.0.1","port":%d,"username":%q,"password":"district"}`, stage.Postgres.Port, unique))
	f := start(t, "SECRET_ID="+unique, "DATABASES="+unique+"_*,!*_model", fmt.Sprintf("PARALLEL_DATABASES=%d", parallel))

	over := make(chan int)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		most := 0
		for ctx.Err() == nil {
			var n int
			admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", unique).Scan(&n) //nolint:errcheck // the most counts
			most = max(most, n)
		}
		over <- most
	}()
	begin := time.Now()
	reply, lines := f.invoke(t, `{}`)
	took := time.Since(begin)
	stop()
	if n := len(results(t, reply, "complete", many*rows)); n != many {
		t.Errorf("%d databases, want %d", n, many)
	}
	if n := len(metrics(t, lines)); n != many {
		t.Errorf("%d metric lines, want %d", n, many)
	}
	// A connection that is closed is seen a moment longer.
	if most := <-over; most == 0 || most > 2*parallel {
		t.Errorf("%d connections at once, the bound is %d", most, parallel)
	} else {
		t.Logf("%d databases in %s, %d connections at once at most, %s resident", many, took, most, resident(t, f))
	}
}

// resident returns the most memory that the function's process has had.
func resident(t *testing.T, f function) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.PID()))
	if err != nil {
		return "unknown memory"
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "unknown memory"
}

func TestTheFunctionAnswersBeforeItsTimeout(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 500, 5)
	db.slow(t, "10ms")
	f := db.start(t, "BATCH_SIZE=50", "BATCH_TARGET=0s", "STOP_BEFORE=3s")
	reply, lines, err := f.Invoke(t.Context(), `{}`, 6*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	r := db.result(t, reply)
	if r.Status != "partial" || r.StopReason != "deadline" || r.DeletedRows == 0 {
		t.Errorf("%+v", r)
	}
	db.expect(t, 500-int(r.DeletedRows), 5)
	// On a machine that is busy the age is not known, and then absent: never 0.
	if m := oneMetric(t, lines); m.DeletedRows != r.DeletedRows || strings.Contains(lines, `"OldestExpiredAge":0`) {
		t.Errorf("%+v", m)
	}

	reply, lines, err = f.Invoke(t.Context(), `{}`, 2*time.Second) // less than STOP_BEFORE
	if err != nil {
		t.Fatal(err)
	}
	if r := db.result(t, reply); r.Status != "partial" || r.StopReason != "deadline" || r.DeletedRows != 0 || !found(r, "no-time") {
		t.Errorf("%+v", r)
	}
	oneMetric(t, lines)
}

func TestTwoFunctionsAtOnceDoNotMeet(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 100, 5)
	db.witness(t)
	db.slow(t, "20ms")
	one, other := db.start(t), db.start(t)
	ended := one.run(t, `{}`, time.Minute)
	db.untilDeleting(t)
	reply, lines := other.invoke(t, `{}`)
	if r := db.result(t, reply); r.Status != "partial" || r.StopReason != "already-running" || r.DeletedRows != 0 {
		t.Errorf("%+v", r)
	}
	if m := oneMetric(t, lines); m.Failures != 0 {
		t.Errorf("%+v", m)
	}
	a := <-ended
	if a.err != nil {
		t.Fatalf("%v\n%s", a.err, a.lines)
	}
	if r := db.result(t, a.reply); r.Status != "complete" || r.DeletedRows != 100 {
		t.Errorf("%+v", r)
	}
	db.count(t, 0, oneMetric(t, a.lines).DeletedRows, 0, 0)
	db.expect(t, 0, 5)
}

func TestAKilledFunctionLeavesNoLockAndNoHalfBatch(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 200, 5)
	db.witness(t)
	db.slow(t, "20ms")
	f := db.start(t, "BATCH_SIZE=100")
	go f.Invoke(t.Context(), `{}`, time.Minute) //nolint:errcheck // it is killed
	db.untilDeleting(t)
	f.Stop()
	left, _ := db.counts(t)
	if left%100 != 0 {
		t.Errorf("%d rows are left of 200 in batches of 100", left)
	}
	db.drain(t, db.start(t))
	db.expect(t, 0, 5)
}

func TestAnUnreachableServiceIsAnErrorWithinTenSeconds(t *testing.T) {
	t.Parallel()
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.Close()
	secrets.Hang()
	f := start(t, "AWS_ENDPOINT_URL_SECRETS_MANAGER="+secrets.URL())
	begin := time.Now()
	reply, lines := f.invoke(t, `{}`)
	expectError(t, reply, "SecretError", "NAT gateway or an interface endpoint")
	oneMetric(t, lines)
	// Package secret tests that it gives up after 8 s; the rest is for a busy machine.
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("after %s", took)
	}
}

// function is a running function.
type function struct{ *rig.Function }

func start(t *testing.T, env ...string) function {
	t.Helper()
	f, err := stage.Start(context.Background(), env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Stop)
	return function{f}
}

func (f function) invoke(t *testing.T, event string) (fakeaws.Reply, string) {
	t.Helper()
	reply, lines, err := f.Invoke(t.Context(), event, time.Minute)
	if err != nil {
		t.Fatalf("%v\n%s", err, lines)
	}
	return reply, lines
}

// database is an Ed-Fi admin database with tokens.
type database struct {
	name string
	conn *pgx.Conn
}

var created atomic.Int64

func newDatabase(t *testing.T, expired, live int) database {
	t.Helper()
	return newNamed(t, fmt.Sprintf("EdFi_Admin_%d", created.Add(1)), expired, live)
}

func newNamed(t *testing.T, name string, expired, live int) database {
	t.Helper()
	return newOn(t, stage, name, expired, live)
}

func newOn(t *testing.T, on *rig.Rig, name string, expired, live int) database {
	t.Helper()
	db := database{name: name}
	var err error
	if db.conn, err = on.CreateDatabase(context.Background(), db.name); err == nil {
		err = edfi.Fill(t.Context(), db.conn, edfi.FillOptions{Expired: expired, Live: live}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.conn.Close(context.Background()) })
	return db
}

func (db database) start(t *testing.T, env ...string) function {
	t.Helper()
	return start(t, append(env, "DATABASES="+db.name)...)
}

func (db database) counts(t *testing.T) (expired, live int) {
	t.Helper()
	e, l, err := edfi.Counts(t.Context(), db.conn)
	if err != nil {
		t.Fatal(err)
	}
	return int(e), int(l)
}

func (db database) expect(t *testing.T, expired, live int) {
	t.Helper()
	if e, l := db.counts(t); e != expired || l != live {
		t.Errorf("%d expired and %d live rows are left, want %d and %d", e, l, expired, live)
	}
}

// slow makes the server take that long for each row that it deletes.
func (db database) slow(t *testing.T, perRow string) {
	t.Helper()
	if _, err := db.conn.Exec(t.Context(), `
CREATE FUNCTION dbo.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep_for('`+perRow+`'); RETURN OLD; END $$;
CREATE TRIGGER slow BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION dbo.slow()`); err != nil {
		t.Fatal(err)
	}
}

// untilDeleting waits for a DELETE to run in the database.
func (db database) untilDeleting(t *testing.T) {
	t.Helper()
	for running := false; !running; {
		err := db.conn.QueryRow(t.Context(), `
SELECT EXISTS (SELECT FROM pg_stat_activity
WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid() AND query LIKE '%DELETE FROM%')`).Scan(&running)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func parse(t *testing.T, reply fakeaws.Reply) (r purge.Result) {
	t.Helper()
	if reply.Error != nil {
		t.Fatalf("%+v", *reply.Error)
	}
	if err := json.Unmarshal(reply.Payload, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// result returns the result for db, which must be the only one.
func (db database) result(t *testing.T, reply fakeaws.Reply) purge.DatabaseResult {
	t.Helper()
	r := parse(t, reply)
	if len(r.Databases) != 1 || r.Databases[0].Database != db.name || r.Status != r.Databases[0].Status || r.DeletedRows != r.Databases[0].DeletedRows {
		t.Fatalf("%+v", r)
	}
	return r.Databases[0]
}

// found tells whether the result has a finding with this code.
func found(r purge.DatabaseResult, code string) bool {
	return slices.ContainsFunc(r.Findings, func(f purge.Finding) bool { return f.Code == code })
}

// results returns the results of all databases.
func results(t *testing.T, reply fakeaws.Reply, status purge.Status, deleted int64) []purge.DatabaseResult {
	t.Helper()
	r := parse(t, reply)
	if r.Status != status || r.DeletedRows != deleted {
		t.Errorf("%s with %d rows deleted, want %s with %d", r.Status, r.DeletedRows, status, deleted)
	}
	return r.Databases
}

// sessions returns how many sessions the database has had.
func (db database) sessions(t *testing.T, conn *pgx.Conn) (n int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT sessions FROM pg_stat_database WHERE datname = $1", db.name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func expectError(t *testing.T, reply fakeaws.Reply, errorType, want string) {
	t.Helper()
	if reply.Error == nil || reply.Error.Type != errorType || !strings.Contains(reply.Error.Message, want) {
		t.Errorf("%s %+v, want %s with %q", reply.Payload, reply.Error, errorType, want)
	}
}

type metric struct {
	AWS struct {
		Timestamp         int64
		CloudWatchMetrics []struct {
			Namespace  string
			Dimensions [][]string
			Metrics    []struct{ Name, Unit string }
		}
	} `json:"_aws"`
	FunctionName, Database                string
	DeletedRows                           int64
	Batches, Failures                     int
	Duration, OldestExpiredAge            float64
	Incomplete                            int
	Version                               string
	StopReason, Engine, RequestID, Cutoff string
}

func metrics(t *testing.T, lines string) []metric {
	t.Helper()
	var all []metric
	for line := range strings.Lines(lines) {
		if !strings.Contains(line, "_aws") {
			continue
		}
		var m metric
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, m)
	}
	return all
}

func oneMetric(t *testing.T, lines string) metric {
	t.Helper()
	all := metrics(t, lines)
	if len(all) != 1 {
		t.Fatalf("%d metric lines, want 1:\n%s", len(all), lines)
	}
	return all[0]
}

func noMetric(t *testing.T, lines string) {
	t.Helper()
	if n := len(metrics(t, lines)); n != 0 {
		t.Errorf("%d metric lines, want none:\n%s", n, lines)
	}
}

func TestNoToolAndNoTestIsInTheBinary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-tags", "lambda.norpc", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		for _, unwanted := range []string{"embedded-postgres", "internal/testing", "purgetest", "net/rpc", "creack/pty", "gonum.org"} {
			if strings.Contains(dep, unwanted) {
				t.Errorf("the binary holds %s", dep)
			}
		}
	}
}

func TestTheDomainImportsTheStandardLibraryAndTwoModulesBesideIt(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../internal/purge").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if strings.HasPrefix(dep, "golang.org/x/sync/") || strings.HasPrefix(dep, "golang.org/x/time/") {
			continue
		}
		if strings.Contains(strings.Split(dep, "/")[0], ".") || strings.HasPrefix(dep, "edfi") && !strings.HasSuffix(dep, "internal/purge") {
			t.Errorf("package purge imports %s", dep)
		}
	}
}
