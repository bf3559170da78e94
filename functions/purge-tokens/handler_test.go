package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
	"edfi-token-purge/functions/internal/testing/fakeaws"
	"edfi-token-purge/functions/internal/testing/relay"
)

func TestAnAnswerIsNeverTooLong(t *testing.T) {
	result := purge.Result{Status: purge.Failed, DeletedRows: 7}
	for range 20_000 {
		result.Databases = append(result.Databases, purge.DatabaseResult{Database: "EdFi_Admin", Server: strings.Repeat("h", 200), Status: purge.Complete})
	}
	result.Databases[42] = purge.DatabaseResult{Database: "EdFi_Admin_42", Status: purge.Partial}
	text, err := answer(t.Context(), result)
	if err != nil || len(text) > mostBytes || !strings.Contains(string(text), "EdFi_Admin_42") {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestTheStateMachineGetsTheTotalsAlone(t *testing.T) {
	drain, err := os.ReadFile("../../infra/drain.yaml")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`"ClientContext": "([^"]+)"`).FindSubmatch(drain)
	if said == nil {
		t.Fatal("it says no client context")
	}
	text, err := base64.StdEncoding.DecodeString(string(said[1]))
	if err != nil {
		t.Fatal(err)
	}
	lc := &lambdacontext.LambdaContext{}
	if err := json.Unmarshal(text, &lc.ClientContext); err != nil {
		t.Fatal(err)
	}
	result := purge.Result{Status: purge.Partial, DeletedRows: 7, Databases: []purge.DatabaseResult{{Database: "EdFi_Admin"}}}
	got, err := answer(lambdacontext.NewContext(t.Context(), lc), result)
	if want := `{"status":"partial","action":"","deletedRows":7,"durationMs":0,"databases":[]}`; err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}

// Wherever a function waits, it answers before Lambda kills it: Invoke returns an error
// for one that is killed.
func TestAFunctionWithLittleTimeAnswers(t *testing.T) {
	t.Parallel()
	hole := relay.BlackHole(t, "127.0.0.1", 0)
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(secrets.Close)
	secrets.Hang()
	const quiet, short, within = 3 * time.Second, 300 * time.Millisecond, "deadline"
	for name, c := range map[string]struct {
		time      time.Duration
		stop      string // STOP_BEFORE
		databases string
		hang      bool // Secrets Manager
		want      string
	}{
		"the secret":                          {quiet, "1s", "A", true, "SecretError"},
		"the secret, less than STOP_BEFORE":   {quiet, "10s", "A", true, within},
		"the secret, next to nothing":         {short, "10s", "A", true, within},
		"the list":                            {quiet, "1s", "A*", false, "PurgeFailed"},
		"the list, less than STOP_BEFORE":     {quiet, "10s", "A*", false, within},
		"the list, next to nothing":           {short, "1s", "A*", false, within},
		"a connection":                        {2 * quiet, "1s", "A,B,C", false, "PurgeFailed"},
		"a connection, less than STOP_BEFORE": {quiet, "10s", "A,B,C", false, within},
		"a connection, next to nothing":       {short, "10s", "A,B,C", false, within},
	} {
		for _, engine := range []string{"postgres", "sqlserver"} {
			t.Run(name+" "+engine, func(t *testing.T) {
				t.Parallel()
				id := fmt.Sprintf("hole/%d", created.Add(1))
				stage.Secrets.Put(id, fmt.Sprintf(`{"engine":%q,"host":"127.0.0.1","port":%d,"username":"u","password":"p"}`, engine, hole))
				settings := []string{"SECRET_ID=" + id, "STOP_BEFORE=" + c.stop, "DATABASES=" + c.databases}
				if c.hang {
					settings = append(settings, "AWS_ENDPOINT_URL_SECRETS_MANAGER="+secrets.URL())
				}
				f := start(t, settings...)
				<-f.Polled() // the start of a process is not what is tried here
				reply, lines, err := f.Invoke(t.Context(), `{}`, c.time)
				if err != nil {
					t.Fatalf("%v\n%s", err, lines)
				}
				if len(metrics(t, lines)) == 0 {
					t.Errorf("no metric line:\n%s", lines)
				}
				if c.want != within {
					expectError(t, reply, c.want, "")
				} else if r := parse(t, reply); r.Status != purge.Partial || len(r.Findings) != 1 || r.Findings[0].Code != "no-time" {
					t.Errorf("%+v", r)
				}
			})
		}
	}
}

func TestAWarmFunctionUsesTheLoginThatWorkedLast(t *testing.T) {
	t.Parallel()
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.Close()
	db := newDatabase(t, 3, 3)
	secrets.Put("x", stage.Secret(stage.Postgres.Password))
	f := db.start(t, "SECRET_ID=x", "AWS_ENDPOINT_URL_SECRETS_MANAGER="+secrets.URL())
	for state, change := range map[string]func(){
		"it hangs":    secrets.Hang,
		"it fails":    func() { secrets.Fail("InternalServiceError", "no") },
		"it is there": func() {},
	} {
		secrets.Recover()
		reply, _ := f.invoke(t, `{}`)
		if r := db.result(t, reply); found(r, "secret-unread") {
			t.Errorf("%+v", r)
		}
		change()
		reply, lines := f.invoke(t, `{}`)
		if r := db.result(t, reply); r.Status != purge.Complete || found(r, "secret-unread") != (state != "it is there") {
			t.Errorf("%s: %+v", state, r)
		}
		oneMetric(t, lines)
	}
	secrets.Put("x", `{"username":"u","password":"p",}`) // that is an answer
	secrets.Recover()
	reply, _ := f.invoke(t, `{}`)
	expectError(t, reply, secretError, "a comma too much")
}

// The old server still answers with the same password.
func TestAMovedHostIsServedByTheNextRun(t *testing.T) {
	t.Parallel()
	one, err := relay.New(fmt.Sprintf("%s:%d", stage.Postgres.Host, stage.Postgres.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	db := newDatabase(t, 3, 3)
	id := fmt.Sprintf("moved/%d", created.Add(1))
	put := func(port uint16) {
		stage.Secrets.Put(id, fmt.Sprintf(`{"engine":"postgres","host":"127.0.0.1","port":%d,"username":%q,"password":%q}`, port, stage.Postgres.User, stage.Postgres.Password))
	}
	put(one.Port())
	f := db.start(t, "SECRET_ID="+id)
	for _, port := range []uint16{one.Port(), stage.Postgres.Port, one.Port(), stage.Postgres.Port} {
		put(port)
		one.Counts()
		reply, _ := f.invoke(t, `{}`)
		through, _ := one.Counts()
		if r := db.result(t, reply); r.Server != fmt.Sprintf("127.0.0.1:%d", port) || (through > 0) != (port == one.Port()) {
			t.Errorf("the secret names port %d, the result %s, with %d connections by way of the old one", port, r.Server, through)
		}
	}
}

// What the first attempt came to is told by nobody: neither in the result nor in metrics.
func TestARefusedLoginHasTheRunStartOverWhereTheOtherVersionSays(t *testing.T) {
	t.Parallel()
	elsewhere, err := relay.New(fmt.Sprintf("%s:%d", stage.Postgres.Host, stage.Postgres.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	for _, pattern := range []bool{false, true} {
		a := newDatabase(t, 3, 3)
		b := newNamed(t, a.name+"_b", 3, 3)
		databases := a.name + "," + b.name
		if pattern {
			databases = a.name + "*"
		}
		id := fmt.Sprintf("over/%d", created.Add(1))
		stage.Secrets.Put(id, stage.Secret(stage.Postgres.Password)) // what was right before
		stage.Secrets.Put(id, fmt.Sprintf(`{"engine":"postgres","host":"127.0.0.1","port":%d,"username":%q,"password":"hunter2"}`, elsewhere.Port(), stage.Postgres.User))
		reply, lines := start(t, "SECRET_ID="+id, "DATABASES="+databases).invoke(t, `{}`)
		for _, r := range results(t, reply, purge.Complete, 6) {
			if r.Server != fmt.Sprintf("127.0.0.1:%d", stage.Postgres.Port) {
				t.Errorf("%+v", r)
			}
		}
		if all := metrics(t, lines); len(all) != 2 || all[0].Failures+all[1].Failures != 0 {
			t.Errorf("%+v", all)
		}
		if through, _ := elsewhere.Counts(); through == 0 || strings.Contains(lines, "hunter2") {
			t.Errorf("%d connections to the server that the secret names first:\n%s", through, lines)
		}
		a.expect(t, 0, 3)
	}
}

// catalogued is a server that only lists its databases.
type catalogued struct {
	purge.Engine
	names []string
}

func (c catalogued) Databases(context.Context, string) (all []purge.Database, err error) {
	for _, name := range c.names {
		all = append(all, purge.Database{Name: name})
	}
	return all, nil
}

func TestNamesThatDifferInCaseAreTwoWhereTheServerHasBoth(t *testing.T) {
	selection, err := purge.ParseSelection("EdFi*,!EdFi_TEMPLATE")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ engine, names, want string }{
		{"sqlserver", "edfi_a EdFi_B EdFi_Template", "edfi_a EdFi_B"},
		{"sqlserver", "EdFi_A EdFi_a EdFi_Template EdFi_TEMPLATE", "EdFi_A EdFi_a EdFi_Template"},
		{"postgres", "edfi_a EdFi_B", "EdFi_B"},
	} {
		e, _ := engineNamed(c.engine)
		databases, err := resolve(t.Context(), catalogued{names: strings.Fields(c.names)}, selection, e, secret.Login{})
		var got []string
		for _, d := range databases {
			got = append(got, d.Name)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// On a server to which names that differ in case are two, an event gets at none that
// DATABASES does not allow or excludes, and each name that is meant is served.
func TestTheServerSaysWhetherTwoLetterCasesAreOneName(t *testing.T) {
	two := []string{"EdFi_Kept", "edfi_kept"} // such a server
	for _, c := range []struct {
		engine, databases string
		has               []string
		event             []string
		want              string // "" is that the event is refused
	}{
		{"sqlserver", "edfi_kept", nil, []string{"EDFI_KEPT"}, "EDFI_KEPT"},
		{"sqlserver", "edfi_kept", two, []string{"EdFi_Kept"}, ""},
		{"sqlserver", "edfi_kept", two, []string{"edfi_kept"}, "edfi_kept"},
		{"sqlserver", "edfi_*", two, []string{"EdFi_Kept"}, ""},
		{"sqlserver", "*,!EdFi_Kept", nil, []string{"EDFI_KEPT"}, ""},
		{"sqlserver", "*,!EdFi_Kept", two, []string{"EdFi_Kept"}, ""},
		{"sqlserver", "*,!EdFi_Kept", two, []string{"edfi_kept"}, "edfi_kept"},
		{"sqlserver", "*", two, []string{"edfi_kept", "EdFi_Kept"}, "edfi_kept EdFi_Kept"},
		{"sqlserver", "*", nil, []string{"edfi_kept", "EdFi_Kept"}, "edfi_kept"},
		{"sqlserver", "edfi_kept,EdFi_Kept", two, nil, "edfi_kept EdFi_Kept"},
		{"sqlserver", "edfi_kept,EdFi_Kept", nil, nil, "edfi_kept"},
		{"sqlserver", "edfi_ſchool,edfi_School", nil, nil, "edfi_ſchool"}, // a long s
		{"postgres", "edfi_kept", nil, []string{"EdFi_Kept"}, ""},
		{"postgres", "*,!EdFi_Kept", nil, []string{"edfi_kept"}, "edfi_kept"},
	} {
		w, h := newWorld(t, "DATABASES="+c.databases)
		v := stored{Engine: c.engine, Host: "a.example", Username: "purge", Password: "1"}
		w.servers[v.server()], w.names = map[string]string{"purge": "1"}, c.has
		w.put(v)
		result, err := h.run(t.Context(), request{action: purge.Purge, databases: c.event})
		var got []string
		for _, d := range result.Databases {
			got = append(got, d.Database)
		}
		failed, refused := errors.AsType[messages.InvokeResponse_Error](err)
		if strings.Join(got, " ") != c.want || refused != (c.want == "") || refused && failed.Type != invalidEvent {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// An exclusion in letters that the server takes for those of a database holds for it, for
// a pattern and for an event. What the server can't say is purged by no one.
func TestAnExclusionHoldsForWhatTheServerTakesForTheSameName(t *testing.T) {
	wide := func(r rune) rune { return r - '!' + '！' }
	alike := strings.NewReplacer("ü", "u", "Ü", "U", "ß", "ss", "ı", "i", string(wide('E')), "E", string(wide('t')), "t", "\u200b", "")
	for _, c := range []struct {
		databases string
		has       []string
		event     []string
		want      string // "" is that the run is refused
		asked     int
	}{
		{"Ed*,!EdFi_Admin_*,!EdFi_Zurich", []string{"EdFi_Zürich", "EdFi_B"}, nil, "EdFi_B", 1},
		{"Ed*,!EdFi_Admin_*,!EdFi_Zürich", []string{"EdFi_Zurich", "EdFi_B"}, nil, "EdFi_B", 1},
		{"Ed*,!EdFi_Admin_*,!ＥdFi_Test", []string{"EdFi_Test", "EdFi_B"}, nil, "EdFi_B", 1},
		{"*,!EdFi_Admin_*,!EdFi_Test", []string{"ＥdFi_ｔest", "EdFi_B"}, nil, "EdFi_B", 1},
		{"Ed*,!EdFi_Admin_*,!*_Strasse*", []string{"EdFi_Straße_1", "EdFi_B"}, nil, "EdFi_B", 1},
		{"Ed*,!EdFi_Admin_*,!*_Straße?1", []string{"EdFi_Strasse_1", "EdFi_B"}, nil, "EdFi_B", 1},
		{"Ed*,!EdFi_Admin_*,!EdFi_Admın", []string{"EdFi_Admin", "EdFi_B"}, nil, "EdFi_B", 1},
		{"Ed*,!EdFi_Admin_*,!EdFi_Test", []string{"EdFi_Test\u200b", "EdFi_B"}, nil, "EdFi_B", 1},
		{"Ed*,!EdFi_Admin_*,!EdFi_Test", []string{"EdFi_Test  ", "EdFi_B"}, nil, "EdFi_B", 0},
		{"Ed*,!EdFi_Admin_*,!edfi_test", []string{"EdFi_Test", "EdFi_B"}, nil, "EdFi_B", 0},
		{"EdFi_Zürich,EdFi_B,!EdFi_Zurich", nil, nil, "EdFi_B", 1},
		{"*,!EdFi_Zurich", []string{"EdFi_Zürich"}, []string{"EdFi_Zürich"}, "", 1},
		{"*,!EdFi_Zürich", []string{"EdFi_Zurich"}, []string{"EdFi_Zurich"}, "", 1},
		{"*,!EdFi_Zurich", []string{"EdFi_Zürich"}, []string{"EdFi_B"}, "EdFi_B", 0},
		{"*,!EdFi_Zurich", []string{"EdFi_Genève"}, []string{"EdFi_Genève"}, "EdFi_Genève", 1},
	} {
		w, h := newWorld(t, "DATABASES="+c.databases)
		v := stored{Engine: "sqlserver", Host: "a.example", Username: "purge", Password: "1"}
		w.servers[v.server()], w.names, w.alike = map[string]string{"purge": "1"}, c.has, alike
		w.put(v)
		result, err := h.run(t.Context(), request{action: purge.Purge, databases: c.event})
		var got []string
		for _, d := range result.Databases {
			got = append(got, d.Database)
		}
		failed, refused := errors.AsType[messages.InvokeResponse_Error](err)
		if strings.Join(got, " ") != c.want || refused != (c.want == "") || refused && failed.Type != invalidEvent || w.asked != c.asked {
			t.Errorf("%+v: %q, asked %d times, %v", c, got, w.asked, err)
		}
		if w.alike = nil; c.asked == 0 {
			continue
		}
		clear(w.served)
		_, err = h.run(t.Context(), request{action: purge.Purge, databases: c.event})
		if failed, _ = errors.AsType[messages.InvokeResponse_Error](err); failed.Type != purgeFailed || len(w.served) > 0 || !strings.Contains(failed.Message, "which databases DATABASES excludes") {
			t.Errorf("%+v, and the server can't say: %v, %v", c, err, w.served)
		}
	}
}

func TestStrictEncryptionIsForSQLServerAlone(t *testing.T) {
	for engine, want := range map[string]string{"postgres": "set DB_TLS=verify-full", "sqlserver-web": ""} {
		c, faults := readConfig(func(name string) string {
			return map[string]string{"DATABASE_URL": "postgres://u:p@db.example/EdFi_Admin", "DB_ENGINE": engine, "DB_TLS": "strict"}[name]
		})
		if c.login.TLS != secret.Strict {
			t.Errorf("%+v", c)
		}
		if told := strings.Join(faults, "; "); (told == "") != (want == "") || !strings.Contains(told, want) {
			t.Errorf("%s: %s", engine, told)
		}
	}
}
