package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
)

// world is a few servers and the secret of a login for one of them.
type world struct {
	mu      sync.Mutex
	servers map[string]map[string]string // by engine and address: the password of each user
	closed  map[string]bool              // "engine address user database" that may not be entered
	failing bool                         // Secrets Manager
	stale   bool                         // it returns the version before once more
	stages  map[string]stored
	calls   int
	served  map[string]int    // by engine and address, what was looked at
	names   []string          // of databases, beside those that each server has
	alike   *strings.Replacer // makes one of what the servers' collation takes for one; nil can't be asked
	asked   int               // how often
}

// stored is what a secret holds.
type stored struct {
	Engine   string `json:"engine"`
	Host     string `json:"host"`
	Username string `json:"username"`
	Password string `json:"password"`
	Database string `json:"dbname,omitempty"`
}

// defaultPorts are those that a result shows.
func (v stored) server() string {
	e, _ := engineNamed(v.Engine)
	return fmt.Sprintf("%s %s:%d", e.name, v.Host, e.port)
}

// accepts tells whether the server that v names lets its login in.
func (w *world) accepts(v stored) bool {
	password, ok := w.servers[v.server()][v.Username]
	return ok && password == v.Password
}

// put makes v the secret's current version.
func (w *world) put(v stored) {
	w.stages[secret.Previous] = w.stages[secret.Current]
	w.stages[secret.Current] = v
}

func (w *world) GetSecretValue(_ context.Context, in *secretsmanager.GetSecretValueInput, _ ...func(*secretsmanager.Options)) (*secretsmanager.GetSecretValueOutput, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	stage := *in.VersionStage
	if w.stale && stage == secret.Current {
		w.stale, stage = false, secret.Previous
	}
	v, ok := w.stages[stage]
	switch {
	case w.failing:
		return nil, &types.InternalServiceError{}
	case !ok:
		return nil, &types.ResourceNotFoundException{}
	}
	text, _ := json.Marshal(v) // strings
	return &secretsmanager.GetSecretValueOutput{SecretString: new(string(text))}, nil
}

// session is a server as one login sees it.
type session struct {
	*world
	v stored
}

func (s session) Open(_ context.Context, database string, _ purge.Table, _ bool) (purge.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.accepts(s.v):
		return nil, fmt.Errorf("connect: %w: check user name and password", purge.ErrLogin)
	case s.closed[s.v.server()+" "+s.v.Username+" "+database]:
		return nil, purge.NotPurgeable{Kind: purge.NoDatabase, Message: "no database " + database + ", or it may not be entered"}
	}
	return looked{s}, nil
}

func (s session) Databases(context.Context, string) ([]purge.Database, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.accepts(s.v) {
		return nil, fmt.Errorf("connect: %w: check user name and password", purge.ErrLogin)
	}
	all := []purge.Database{{Name: "EdFi_Admin_1"}, {Name: "EdFi_Admin_2"}, {Name: "EdFi_Admin_3"}}
	for _, name := range s.names {
		all = append(all, purge.Database{Name: name})
	}
	return all, nil
}

// Matching implements comparer.
func (s session) Matching(_ context.Context, _ string, names, patterns []string) (matched []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.alike == nil {
		return nil, errors.New("it does not know LIKE")
	}
	list := "*"
	for _, pattern := range patterns {
		list += ",!" + s.alike.Replace(pattern)
	}
	allows, err := purge.ParseSelection(list)
	for _, name := range names {
		if !allows.Filter(true)(s.alike.Replace(name)) {
			matched = append(matched, name)
		}
	}
	return matched, err
}

// looked is a connection to a database without rows.
type looked struct{ session }

func (looked) Switch(context.Context, purge.Table) error { return nil }
func (looked) Facts() purge.Facts {
	return purge.Facts{Now: time.Now(), Clock: time.Now(), Indexed: true}
}
func (looked) Expired(time.Time, time.Time) purge.Window { return 0 }
func (l looked) Oldest(context.Context, purge.Window, purge.Trail) (time.Time, purge.Window, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.served[l.v.server()]++
	return time.Time{}, nil, nil
}
func (looked) Count(context.Context, purge.Window) (int64, error) { return 0, nil }
func (looked) Cut(context.Context, purge.Window, int, int) ([]purge.Batch, purge.Window, error) {
	return nil, nil, nil
}

func (looked) Delete(context.Context, purge.Batch) (purge.Deleted, error) {
	return purge.Deleted{}, nil
}
func (looked) Check(context.Context) ([]purge.Finding, error) { return nil, nil }
func (looked) Close()                                         {}

// newWorld has all engines connect to it, and returns a function that is cold.
func newWorld(t *testing.T, settings ...string) (*world, *handler) {
	t.Helper()
	w := &world{servers: map[string]map[string]string{}, closed: map[string]bool{}, stages: map[string]stored{}, served: map[string]int{}}
	real := slices.Clone(engines)
	t.Cleanup(func() { engines = real })
	engines = slices.Clone(engines)
	for i := range engines {
		name := engines[i].name
		engines[i].connect = func(login secret.Login, _ config, _ resources) server {
			return session{w, stored{name, login.Host, login.Username.Reveal(), login.Password.Reveal(), login.Database}}
		}
	}
	c, faults := readConfig(env(append(settings, "SECRET_ID=s", "DB_TLS=disable")...))
	if faults != nil {
		t.Fatal(faults)
	}
	return w, &handler{config: c, secrets: w, metrics: io.Discard, log: slog.New(slog.DiscardHandler)}
}

// Whatever happens to secret and servers between the runs of a warm function, and in the
// middle of one, the server that the result names is the one that was served.
func TestTheResultNamesTheServerThatWasServed(t *testing.T) {
	for _, databases := range []string{"EdFi_Admin_1,EdFi_Admin_2,EdFi_Admin_3", "EdFi_Admin_*"} {
		w, h := newWorld(t, "DATABASES="+databases)
		random := rand.New(rand.NewPCG(3, 4))
		hosts, users := []string{"a.example", "b.example"}, []string{"purge", "purge_clone"}
		kinds := []string{"postgres", "sqlserver"}
		for _, host := range hosts {
			for _, kind := range kinds {
				w.servers[stored{Engine: kind, Host: host}.server()] = map[string]string{"purge": "0", "purge_clone": "0"}
			}
		}
		w.put(stored{Engine: "postgres", Host: "a.example", Username: "purge", Password: "0"})
		var worked *stored
		seen := map[string]int{}
		for step := range 400 {
			v := w.stages[secret.Current]
			did := []string{
				"nothing", "rotated", "rotated, the server not yet", "the user alternated", "the host moved", "another engine", "the server refuses",
				"the server lets in again", "Secrets Manager fails", "Secrets Manager is back", "rotated in the middle of a run",
			}[random.IntN(11)]
			switch did {
			case "rotated", "rotated in the middle of a run":
				v.Password = fmt.Sprint(step)
				w.servers[v.server()][v.Username] = v.Password
				w.put(v)
				w.stale = did != "rotated"
			case "rotated, the server not yet":
				v.Password = fmt.Sprint(step)
				w.put(v)
			case "the user alternated":
				v.Username = users[(slices.Index(users, v.Username)+1)%2]
				v.Password = fmt.Sprint(step)
				w.servers[v.server()][v.Username] = v.Password
				w.put(v)
			case "the host moved": // the old server goes on, with the same password or another
				v.Host = hosts[(slices.Index(hosts, v.Host)+1)%2]
				if random.IntN(2) == 0 {
					w.servers[v.server()][v.Username] = v.Password
				}
				w.put(v)
			case "another engine":
				v.Engine = kinds[(slices.Index(kinds, v.Engine)+1)%2]
				w.servers[v.server()][v.Username] = v.Password
				w.put(v)
			case "the server refuses":
				w.servers[v.server()] = map[string]string{}
			case "the server lets in again":
				w.servers[v.server()][v.Username] = v.Password
			case "Secrets Manager fails":
				w.failing = true
			case "Secrets Manager is back":
				w.failing = false
			}
			// What is right: the version that the secret has, then the one before.
			var want *stored
			current, previous := w.stages[secret.Current], w.stages[secret.Previous]
			switch {
			case w.failing && worked != nil && w.accepts(*worked):
				want = worked
			case w.failing:
			case w.stale && w.accepts(previous):
				want = &previous
			case w.accepts(current):
				want = &current
			case w.accepts(previous):
				want = &previous
			}
			clear(w.served)
			result, err := h.run(t.Context(), request{action: purge.Purge})
			w.stale = false
			what := fmt.Sprintf("step %d, %s, Secrets Manager failing %t", step, did, w.failing)
			if want == nil {
				if err == nil || len(w.served) > 0 {
					t.Fatalf("%s: %v, %v served", what, err, w.served)
				}
				seen["failed"]++
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got := slices.Collect(maps.Keys(w.served)); len(got) != 1 || got[0] != want.server() {
				t.Fatalf("%s: %v served, want %s", what, got, want.server())
			}
			for _, d := range result.Databases {
				if d.Engine+" "+d.Server != want.server() || d.Status != purge.Complete || found(d, "secret-unread") != w.failing {
					t.Fatalf("%s: %+v, want %s", what, d, want.server())
				}
			}
			if len(result.Databases) != 3 {
				t.Fatalf("%s: %d databases", what, len(result.Databases))
			}
			worked = new(*want)
			seen[did]++
			if *want == previous {
				seen["by the version before"]++
			}
			if w.failing {
				seen["by the login that worked last"]++
			}
		}
		if len(seen) != 14 {
			t.Errorf("too little happened: %v", seen)
		}
	}
}

// Rotation between two users may leave one of them out of a database.
func TestADatabaseThatOneVersionMayNotEnterIsServedWithTheOther(t *testing.T) {
	w, h := newWorld(t, "DATABASES=EdFi_Admin_*", "PARALLEL_DATABASES=1")
	user := stored{Engine: "sqlserver", Host: "a.example", Username: "purge", Password: "1"}
	clone := stored{Engine: "sqlserver", Host: "a.example", Username: "purge_clone", Password: "2"}
	w.servers[user.server()] = map[string]string{"purge": "1", "purge_clone": "2"}
	w.put(user)
	w.put(clone)
	w.closed[user.server()+" purge_clone EdFi_Admin_2"] = true
	w.closed[user.server()+" purge_clone EdFi_Admin_3"] = true
	result, err := h.run(t.Context(), request{action: purge.Purge})
	if err != nil || result.Status != purge.Complete || w.served[user.server()] != 3 {
		t.Errorf("%+v, %v", result, err)
	}
	if w.calls != 3 {
		t.Errorf("the secret is read %d times, not 3: each version once, and at the beginning", w.calls)
	}
	if h.worked.Username.Reveal() != "purge_clone" {
		t.Error("the login of one database counts for all")
	}
	w.closed[user.server()+" purge EdFi_Admin_2"] = true
	for _, cause := range []string{"another version of the secret may not enter either", "another version of the secret is refused"} {
		_, err := h.run(t.Context(), request{action: purge.Purge, databases: []string{"EdFi_Admin_2"}})
		if err == nil || !strings.Contains(err.Error(), cause) {
			t.Errorf("%v, want %q", err, cause)
		}
		delete(w.servers[user.server()], "purge")
	}
}

func TestAColdFunctionFailsWhereTheSecretCannotBeRead(t *testing.T) {
	w, h := newWorld(t)
	w.failing = true
	_, err := h.run(t.Context(), request{action: purge.Purge})
	failed, ok := errors.AsType[messages.InvokeResponse_Error](err)
	if !ok || failed.Type != secretError {
		t.Errorf("%v", err)
	}
}

// Engine, limits and names are those of the version that is used.
func TestAStarInTheSecretsNameIsNoPatternForAnEvent(t *testing.T) {
	w, h := newWorld(t)
	v := stored{Engine: "postgres", Host: "a.example", Username: "purge", Password: "1", Database: "EdFi_*"}
	w.servers[v.server()] = map[string]string{"purge": "1"}
	w.put(v)
	result, err := h.run(t.Context(), request{action: purge.Purge})
	if err != nil || len(result.Databases) != 1 || result.Databases[0].Database != "EdFi_*" {
		t.Errorf("%+v, %v", result, err)
	}
	_, err = h.run(t.Context(), request{action: purge.Purge, databases: []string{"EdFi_Admin_1"}})
	if failed, ok := errors.AsType[messages.InvokeResponse_Error](err); !ok || failed.Type != invalidEvent {
		t.Errorf("%v", err)
	}
}
