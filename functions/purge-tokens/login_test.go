package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/secret"
	"edfi-token-purge/functions/internal/testing/fakeaws"
	"edfi-token-purge/functions/internal/testing/relay"
)

// opens is an engine that can only open databases.
type opens func(database string) error

func (o opens) Open(_ context.Context, database string, _ purge.Table, _ bool) (purge.Conn, error) {
	return nil, o(database)
}

func (opens) Databases(context.Context, string) ([]purge.Database, error) { return nil, nil }

// openAll opens so many databases and returns their errors.
func openAll(t *testing.T, l *logins, databases, parallel int) (failures []string) {
	t.Helper()
	target := purge.Target{Engine: l, Log: slog.New(slog.DiscardHandler)}
	for i := range databases {
		target.Databases = append(target.Databases, purge.Database{Name: fmt.Sprint("db", i)})
	}
	for _, d := range purge.Run(t.Context(), target, purge.Policy{Action: purge.Check, Parallel: parallel}, func(purge.DatabaseResult) {}).Databases {
		failures = append(failures, d.Error)
	}
	return failures
}

func TestARefusedLoginHasTheSecretReadOnceForAllDatabases(t *testing.T) {
	refuse := opens(func(string) error { return fmt.Errorf("connect: %w", purge.ErrLogin) })
	login := secret.Login{Username: redact.NewSecret("u"), Password: redact.NewSecret("p")}
	other := secret.Login{Username: redact.NewSecret("u"), Password: redact.NewSecret("other")}
	const alone = "connect: the server refused the login"
	for name, c := range map[string]struct {
		current, previous any // a login or an error
		calls             int64
		want              string
	}{
		"the secret can't be read":   {errors.New("access denied"), other, 1, alone + "; and the secret can't be read again: access denied"},
		"there is no version before": {login, errors.New("none"), 2, alone + "; they come from the secret"},
		"no version works":           {login, other, 2, alone + "; they come from the secret; another version of the secret is refused"},
	} {
		var calls atomic.Int64
		l := newLogins(login, "the secret", func(secret.Login) server { return refuse }, func(stage string) (secret.Login, error) {
			calls.Add(1)
			time.Sleep(10 * time.Millisecond) // until the others wait too
			kept := map[string]any{secret.Current: c.current, secret.Previous: c.previous}[stage]
			if err, ok := kept.(error); ok {
				return secret.Login{}, err
			}
			return kept.(secret.Login), nil
		})
		for _, got := range openAll(t, l, 12, 3) {
			if got != c.want {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
		}
		if calls.Load() != c.calls {
			t.Errorf("%s: %d calls, want %d", name, calls.Load(), c.calls)
		}
	}
}

// SQL Server says of a database that recovers or fails over what it says of one that the
// login may not enter. The one passes: no other version of the secret helps, and the run
// waits.
func TestADatabaseThatServesSoonIsNoneThatTheLoginMayNotEnter(t *testing.T) {
	for name, kind := range map[string]purge.Kind{"it was open before": purge.NoDatabase, "the login comes back": purge.NoAccess} {
		soon := opens(func(string) error {
			return purge.Also(purge.NotPurgeable{Kind: kind, Message: "not now"}, purge.ErrNotYet)
		})
		login := secret.Login{Engine: "sqlserver", Username: redact.NewSecret("u"), Password: redact.NewSecret("p")}
		l := newLogins(login, "the secret", func(secret.Login) server { return soon }, func(string) (secret.Login, error) {
			t.Errorf("%s: the secret is read again", name)
			return login, nil
		})
		if _, err := l.Open(t.Context(), "db", purge.ClientAccessTokens, true); !errors.Is(err, purge.ErrNotYet) || err.Error() != "not now" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAServerThatNeverAnswersIsWaitedForOnce(t *testing.T) {
	// One database is opened, then two at once, then three and three and three.
	for name, c := range map[string]struct {
		first error // of the first database; the others can't be reached
		after time.Duration
	}{
		"nothing answers":          {purge.ErrUnreached, 8 * time.Second},
		"one has answered":         {errors.New("no table"), 5 * 8 * time.Second},
		"one lets a log-in hang":   {fmt.Errorf("%w: no answer", purge.ErrLost), 5 * 8 * time.Second},
		"one refuses a connection": {fmt.Errorf("%w: refused", purge.ErrLost), 5 * 8 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			var opened atomic.Int64
			unreached := opens(func(string) error {
				time.Sleep(8 * time.Second)
				if opened.Add(1) == 1 {
					return c.first
				}
				return purge.ErrUnreached
			})
			start := time.Now()
			failures := openAll(t, newLogins(secret.Login{}, "the secret", func(secret.Login) server { return unreached }, nil), 12, 3)
			if took := time.Since(start); took != c.after || slices.Contains(failures, "") {
				t.Errorf("%s: after %s, want %s: %q", name, took, c.after, failures)
			}
		})
	}
}

func TestAServerOfManyDatabasesThatNothingReachesIsAnErrorWithinTenSeconds(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"postgres", "sqlserver"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			id := fmt.Sprintf("hole/%d", created.Add(1))
			stage.Secrets.Put(id, fmt.Sprintf(`{"engine":%q,"host":"127.0.0.1","port":%d,"username":"u","password":"p"}`, engine, relay.BlackHole(t, "127.0.0.1", 0)))
			reply, lines := start(t, "SECRET_ID="+id, "DATABASES=A,B,C,D,E,F,G,H,I").invoke(t, `{}`)
			expectError(t, reply, "PurgeFailed", "9 of 9 databases failed")
			expectError(t, reply, "PurgeFailed", "security groups")
			took := regexp.MustCompile(`message=end .* durationMs=(\d+)`).FindStringSubmatch(lines)
			if took == nil || len(took[1]) > 4 {
				t.Errorf("it took %q ms:\n%s", took, lines)
			}
		})
	}
}

func TestARefusedLoginTellsThatTheSecretCannotBeReadAgain(t *testing.T) {
	t.Parallel()
	dbs := []database{newDatabase(t, 3, 3), newDatabase(t, 3, 3), newDatabase(t, 3, 3)}
	role := fmt.Sprintf("purge_locked_out_%d", created.Add(1))
	dbs[0].exec(t, "CREATE ROLE "+role+" LOGIN SUPERUSER PASSWORD 'before'")
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.Close()
	secrets.Put("x", fmt.Sprintf(`{"engine":"postgres","host":%q,"port":%d,"username":%q,"password":"before"}`, stage.Postgres.Host, stage.Postgres.Port, role))
	f := start(t, "SECRET_ID=x", "AWS_ENDPOINT_URL_SECRETS_MANAGER="+secrets.URL(), fmt.Sprintf("DATABASES=%s,%s,%s", dbs[0].name, dbs[1].name, dbs[2].name))
	reply, _ := f.invoke(t, `{}`)
	results(t, reply, "complete", 9)
	dbs[0].exec(t, "ALTER ROLE "+role+" PASSWORD 'after'")
	secrets.Fail("AccessDeniedException", "no")
	reply, _ = f.invoke(t, `{}`)
	for _, want := range []string{"3 of 3", "refused the login", "the secret can't be read again", "secretsmanager:GetSecretValue"} {
		expectError(t, reply, "PurgeFailed", want)
	}
	if calls := secrets.Calls(); calls != 3 {
		t.Errorf("%d calls, want 3: the run before, this one, and one more", calls)
	}
}
