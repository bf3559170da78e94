package sqlserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// What SQL Server says, and a real one can't be made to say at will. These tests
// run without a server.

// script is a table of so many expired rows behind a stand-in, in so many batches:
// each delete takes what delete says of it, or an equal share.
type script struct {
	rows    atomic.Int64
	ends    atomic.Int64 // of batches, not yet told
	deletes atomic.Int64
	share   int64
	delete  func(number int64) []byte
}

func newScript(rows, batches int64, delete func(number int64) []byte) *script {
	s := &script{share: rows / batches, delete: delete}
	s.rows.Store(rows)
	s.ends.Store(batches - 1)
	return s
}

func (s *script) answer(kind string) []byte {
	now := time.Now().UTC()
	switch kind {
	case "facts":
		return examined(nil)
	case "any":
		return row(1)
	case "held", "count":
		return row(int(s.rows.Load()))
	case "lock":
		return row(0)
	case "oldest":
		if s.rows.Load() == 0 {
			return row(nil, nil)
		}
		return row(now.Add(-time.Hour), now.Add(-time.Hour))
	case "end":
		if left := s.ends.Add(-1); left >= 0 {
			end := now.Add(-time.Minute * time.Duration(left+1))
			return row(end, end.Add(-time.Second))
		}
		return rowless()
	case "delete":
		if answer := s.delete(s.deletes.Add(1)); answer != nil {
			return answer
		}
		n := min(s.share, s.rows.Load())
		s.rows.Add(-n)
		return join(output("deleted", int(n)), done(0))
	}
	return nil
}

func quietly(int64) []byte { return nil }

func (s *standIn) server() Server {
	return Server{Host: "127.0.0.1", Port: s.port(), User: redact.NewSecret("joe"), Password: redact.NewSecret("hunter2"), LockTimeout: time.Second}
}

func TestADeadlockAndALockAreTriedAgain(t *testing.T) {
	t.Parallel()
	for name, numbers := range map[string][2]int32{"deadlock": {1205, 1205}, "lock": {1222, 1222}, "both": {1205, 1222}, "Babelfish's": {33557097, 1205}} {
		table := newScript(21, 3, func(n int64) []byte {
			if n == 1 || n > 3 {
				return nil
			}
			return failure(numbers[n-2], 13, "canceling statement due to lock timeout")
		})
		s := newStandIn(t, &standIn{answer: table.answer})
		r := run(t, s.server(), "EdFi_Admin")
		if r.Status != purge.Complete || r.DeletedRows != 21 || r.Batches != 3 || table.deletes.Load() != 5 {
			t.Errorf("%s: %+v after %d deletes", name, r, table.deletes.Load())
		}
	}
}

func TestATriggersCountsAndAnswersAreNotTheBatchs(t *testing.T) {
	t.Parallel()
	table := newScript(7, 1, nil)
	table.delete = func(int64) []byte {
		table.rows.Store(0)
		return join(doneOf(0xff, 0x11, 4711), more(row(4712)), doneOf(0xff, 0x11, 4713), output("deleted", 7), done(0))
	}
	s := newStandIn(t, &standIn{answer: table.answer})
	if r := run(t, s.server(), "EdFi_Admin"); r.Status != purge.Complete || r.DeletedRows != 7 {
		t.Errorf("%+v", r)
	}
}

func TestALostConnectionIsOpenedAnewAndNothingIsCountedTwice(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind    string
		nth     int32
		answer  []byte
		undone  bool
		batches int64
		deletes int64
		told    bool
	}{
		"in the first delete":  {"delete", 1, hangUp, false, 1, 1, false},
		"in a later delete":    {"delete", 2, hangUp, false, 2, 2, false},
		"ahead of a commit":    {commit, 1, hangUp, true, 1, 2, true},
		"behind a commit":      {commit, 1, hangUp, false, 1, 1, true},
		"behind the last one":  {commit, 3, hangUp, false, 3, 3, true},
		"in a refused commit":  {commit, 1, failure(983, 14, "not accessible"), true, 1, 2, true},
		"in a look":            {"end", 1, hangUp, false, 1, 1, false},
		"by a killing":         {"delete", 2, failure(596, 21, "killed"), false, 2, 2, false},
		"by a fail-over":       {"delete", 2, failure(983, 14, "not accessible"), false, 2, 2, false},
		"ahead of a statement": {begin, 2, hangUp, false, 2, 2, false},
	} {
		table := newScript(7*c.batches, c.batches, quietly)
		var came atomic.Int32
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			if kind != c.kind || came.Add(1) != c.nth {
				return table.answer(kind)
			}
			if c.undone {
				table.rows.Add(table.share)
			}
			return c.answer
		}})
		r := run(t, s.server(), "EdFi_Admin")
		if r.Status != purge.Complete || r.DeletedRows != 7*c.batches || r.Error != "" || count(s.statements(), "login") < 2 || table.deletes.Load() != c.deletes {
			t.Errorf("%s: %+v after %d deletes", name, r, table.deletes.Load())
		}
		// The server can't say later what it committed: rows that are gone, or there, prove nothing.
		if told := slices.ContainsFunc(r.Findings, func(f purge.Finding) bool {
			return f.Code == purge.CountUncertain.Code && contains(f.Message, "by up to 7")
		}); told != c.told {
			t.Errorf("%s: told %t: %+v", name, told, r.Findings)
		}
	}
}

func TestTheLoginsErrorsSayWhatToDoAndLeakNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		refuse []byte
		want   []string
	}{
		"refused":     {failure(18456, 14, "Login failed for user 'joe'."), []string{"refused the login", "18456", "user name and password"}},
		"expired":     {failure(18487, 14, "Login failed for user 'joe'. The password of the account has expired."), []string{"refused the login", "18487"}},
		"no database": {join(failure(4060, 11, "Cannot open database \"EdFi_Admin\" requested by the login."), failure(18456, 14, "Login failed for user 'joe'.")), []string{"EdFi_Admin does not exist", "may not enter"}},
		"no rights":   {failure(916, 14, "The server principal \"joe\" is not able to access the database \"EdFi_Admin\" under the current security context."), []string{"may not enter database EdFi_Admin", "role.sql", "916"}},
		"other":       {failure(17142, 14, "SQL Server is paused; hunter2"), []string{"paused", redact.Mark, "17142"}},
	} {
		s := newStandIn(t, &standIn{refuse: c.refuse})
		_, err := s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
		if err == nil || !contains(err.Error(), c.want...) || strings.Contains(err.Error(), "joe") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind   string
		answer []byte
		found  purge.Kind // the first finding; none is not looked at
		want   []string
	}{
		"right":      {"delete", failure(229, 14, "The DELETE permission was denied"), purge.Kind{}, []string{"infra/sqlserver/role.sql"}},
		"reader":     {"delete", failure(3906, 16, "Failed to update database because it is read-only"), purge.Kind{}, []string{"writer's endpoint"}},
		"secondary":  {"facts", examined(func(f *facts) { f.updates = readOnly }), purge.ReaderEndpoint, []string{"writer's endpoint"}},
		"no table":   {"facts", examined(func(f *facts) { f.oid = 0 }), purge.NoTable, []string{"dbo.ClientAccessTokens does not exist in database EdFi_Admin"}},
		"no right":   {"facts", examined(func(f *facts) { f.selectable, f.deletable = false, false }), purge.NoSelectRight, []string{"GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO", "infra/sqlserver/role.sql"}},
		"no delete":  {"facts", examined(func(f *facts) { f.deletable = false }), purge.NoDeleteRight, []string{"GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO"}},
		"other type": {"facts", examined(func(f *facts) { f.typeName = "datetimeoffset" }), purge.WrongTable, []string{"datetimeoffset"}},
		"Ed-Fi 2":    {"facts", examined(func(f *facts) { f.kind = localTime }), purge.WrongTable, []string{"Ed-Fi ODS/API 2.x"}},
		"no column":  {"facts", examined(func(f *facts) { f.typeName = "" }), purge.WrongTable, []string{"no column Expiration"}},
		"trigger":    {"delete", failure(50000, 16, "never delete 9f3b1c3e-3b5e-4a57-9c39-0b1f4a1e6d11"), purge.Kind{}, []string{"never delete " + redact.Mark}},
	} {
		table := newScript(7, 1, quietly)
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch kind {
			case c.kind:
				return c.answer
			case "exists":
				return failure(208, 16, "Invalid object name 'dbo.ClientAccessTokens'.")
			}
			return table.answer(kind)
		}})
		r := run(t, s.server(), "EdFi_Admin")
		if r.Status != purge.Failed || r.DeletedRows != 0 || !contains(r.Error, c.want...) {
			t.Errorf("%s: %+v, want %q", name, r, c.want)
		}
		if c.found.Code != "" && (len(r.Findings) == 0 || r.Findings[0] != c.found.Found(r.Error)) {
			t.Errorf("%s: %+v, want %s", name, r.Findings, c.found.Code)
		}
	}
}

func TestACheckWaitsForALockedTable(t *testing.T) {
	t.Parallel()
	for _, end := range []bool{true, false} {
		table := &script{}
		var met atomic.Int64
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			if kind == "check" {
				if end && met.Add(1) > 2 {
					return row("SQL Server", "16.0.1", "Web Edition", 150, 1, 0, 1)
				}
				return failure(1222, 16, "Lock request time out period exceeded.")
			}
			return table.answer(kind)
		}})
		checked := policy
		checked.Action, checked.MaxDuration = purge.Check, 3*time.Second
		r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), checked, func(purge.DatabaseResult) {}).Databases[0]
		locked := slices.ContainsFunc(r.Findings, func(f purge.Finding) bool { return f.Code == "locked-rows" })
		if r.Status != map[bool]purge.Status{true: purge.Complete, false: purge.Partial}[end] || locked == end {
			t.Errorf("unlocked in time %t: %+v", end, r)
		}
	}
}

func TestAnEndedContextReachesTheServerAndTheConnectionLivesOn(t *testing.T) {
	t.Parallel()
	table := newScript(7, 1, func(int64) []byte { return noAnswer })
	s := newStandIn(t, &standIn{answer: table.answer})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	slow := policy
	slow.StopBefore = 3 * time.Second
	r := purge.Run(ctx, target(s.server(), "EdFi_Admin"), slow, func(purge.DatabaseResult) {}).Databases[0]
	sent := s.statements()
	told := slices.Index(sent, attention)
	if r.Status != purge.Partial || r.StopReason != purge.Deadline || r.DeletedRows != 0 || told < 0 || ctx.Err() != nil {
		t.Fatalf("%+v, the server got %v", r, sent)
	}
	if after := sent[told:]; !slices.Contains(after, "oldest") || !slices.Contains(after, "unlock") || slices.Contains(after, commit) || slices.Contains(after, "login") || *r.OldestExpiredAge() < 30*time.Minute {
		t.Errorf("%+v, after the attention the server got %v", r, after)
	}
}

func TestACanceledRunReachesTheServer(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	table := newScript(14, 2, quietly)
	var cuts atomic.Int64
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		if kind == "end" {
			if cuts.Add(1) == 2 {
				cancel()
				return noAnswer
			}
			end := time.Now().UTC().Add(-time.Minute)
			return row(end, end) // others like it follow: they are cut by themselves
		}
		return table.answer(kind)
	}})
	r := purge.Run(ctx, target(s.server(), "EdFi_Admin"), policy, func(purge.DatabaseResult) {}).Databases[0]
	if r.Status != purge.Partial || r.StopReason != purge.Canceled || r.DeletedRows != 7 {
		t.Errorf("%+v", r)
	}
	if sent := s.statements(); !slices.Contains(sent, attention) || count(sent, commit) != 1 || count(sent, "login") != 1 {
		t.Errorf("the server got %v", sent)
	}
}

func TestACanceledRunEndsTheBatchInHandAndBeginsNoOther(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	table := newScript(21, 3, func(n int64) []byte {
		if n == 2 {
			cancel()
		}
		return nil
	})
	s := newStandIn(t, &standIn{answer: table.answer})
	r := purge.Run(ctx, target(s.server(), "EdFi_Admin"), policy, func(purge.DatabaseResult) {}).Databases[0]
	if r.Status != purge.Partial || r.StopReason != purge.Canceled || r.DeletedRows != 14 {
		t.Errorf("%+v", r)
	}
	sent := s.statements() // between batches the driver may cancel a query that has ended
	if whole := strings.Count(strings.Join(sent, " "), "delete "+commit); whole != 2 || count(sent, "delete") != 2 || count(sent, "login") != 1 {
		t.Errorf("the server got %v", sent)
	}
}

func TestACanceledDeleteIsUndone(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	table := newScript(7, 1, func(int64) []byte {
		cancel()
		return noAnswer
	})
	s := newStandIn(t, &standIn{answer: table.answer})
	conn, err := s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cut, _, err := conn.Cut(t.Context(), conn.Expired(time.Time{}, time.Now()), 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	if deleted, err := conn.Delete(ctx, cut[0]); deleted.Rows != 0 || !errors.Is(err, purge.ErrTimeout) {
		t.Errorf("%d rows deleted, %v", deleted.Rows, err)
	}
	if sent := s.statements(); !slices.Contains(sent, attention) || !slices.Contains(sent, rollback) || slices.Contains(sent, commit) {
		t.Errorf("the server got %v", sent)
	}
	if _, found, err := conn.Oldest(t.Context(), conn.Expired(time.Time{}, time.Now()), purge.Trail{}); found == nil || err != nil {
		t.Errorf("the connection is of no use afterwards: %v, %v", found, err)
	}
}

func TestAServerThatFallsSilentAfterTheLoginIsAnErrorInTime(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"facts", "lock"} {
		table := newScript(7, 1, quietly)
		s := newStandIn(t, &standIn{answer: func(k string) []byte {
			if k == kind || k == attention {
				return noAnswer
			}
			return table.answer(k)
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := s.server().Open(ctx, "EdFi_Admin", purge.ClientAccessTokens, true)
		if took := time.Since(start); !errors.Is(err, purge.ErrLost) || !contains(err.Error(), "no answer in time") || took > 5*time.Second {
			t.Errorf("%s: %v after %s", kind, err, took)
		}
	}
}

func TestASilentServerIsAnErrorInTime(t *testing.T) {
	t.Parallel()
	s := newStandIn(t, &standIn{silent: true})
	start := time.Now()
	_, err := s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
	if took := time.Since(start); err == nil || !contains(err.Error(), "no answer in time", "security groups") || took > connectTimeout+2*time.Second {
		t.Errorf("%v after %s", err, took)
	}
	s.listener.Close()
	if _, err := s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true); err == nil || !contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
}

func TestNothingIsSentToAServerThatCannotProveItsName(t *testing.T) {
	t.Parallel()
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	t.Cleanup(certificate.Close)
	known := x509.NewCertPool()
	known.AddCert(certificate.Certificate())
	for name, c := range map[string]struct {
		server *tls.Config
		client *tls.Config
		want   string
	}{
		"no encryption":     {nil, &tls.Config{RootCAs: known, ServerName: "example.com"}, "DB_TLS=disable"},
		"unknown authority": {certificate.TLS, &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}, "certificate can't be verified"},
		"another name":      {certificate.TLS, &tls.Config{RootCAs: known, ServerName: "db.example.org"}, "certificate can't be verified"},
	} {
		s := newStandIn(t, &standIn{tls: c.server})
		there := s.server()
		there.TLS = c.client
		_, err := there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
		if sent := s.statements(); err == nil || !strings.Contains(err.Error(), c.want) || len(sent) != 0 {
			t.Errorf("%s: %v, sent %v", name, err, sent)
		}
	}
	// The same certificate is good where its authority and its name are known.
	s := newStandIn(t, &standIn{tls: certificate.TLS})
	there := s.server()
	there.TLS = &tls.Config{RootCAs: known, ServerName: "example.com"}
	there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true) //nolint:errcheck // the stand-in goes no further
	if sent := s.statements(); !slices.Equal(sent, []string{"handshake"}) {
		t.Errorf("sent %v", sent)
	}
}

func TestACheckTellsWhatOnlyARealServerHas(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		check, jobs, facts []byte
		want               []string // level and code
		texts              []string
	}{
		{
			row("SQL Server", "16.0.4135.4", "Standard Edition", 150, 0, -360, 0), row("purge tokens"), nil,
			[]string{"info version", "warning rcsi-off", "warning delete-trigger", "warning referenced", "warning delete-burden", "info definitions-unseen", "info sessions-unseen", "warning other-cleaner", "warning no-tls", "info time-zone"},
			[]string{"16.0.4135.4", "ALTER DATABASE [EdFi_Admin] SET READ_COMMITTED_SNAPSHOT ON", "without them: ALTER TABLE dbo.ClientAccessTokens DISABLE TRIGGER [Audit];", "without them: ALTER TABLE Extra;", "stay in its history", "deleted by SQL Server Agent job purge tokens", "sp_update_job @job_name = N'purge tokens', @enabled = 0;", "-360 minutes", "100 rows, 16 MB", "GRANT VIEW SERVER STATE TO edfi_token_purge;"},
		},
		{
			row("SQL Server", "13.0.1", "Web Edition", 130, 1, 0, 1), failure(229, 14, "denied"), examined(nil),
			[]string{"warning version", "info rcsi", "info other-cleaner-unseen"},
			[]string{"2017"},
		},
		{ // restored from SQL Server 2008
			row("SQL Server", "16.0.1", "Web Edition", 100, 1, 0, 1), rowless(), examined(nil),
			[]string{"warning version", "info rcsi", "info no-other-cleaner"},
			[]string{"compatibility level is 100", "SET COMPATIBILITY_LEVEL"},
		},
		{
			row("SQL Server", "16.0.1", "Web Edition", 150, 1, 0, 1), rowless(), examined(func(f *facts) { f.updates, f.deletable = readOnly, false }),
			[]string{"error reader-endpoint", "error no-delete-right", "info no-other-cleaner"},
			[]string{"writer's endpoint", "GRANT SELECT, DELETE"},
		},
	} {
		table := &script{}
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch {
			case kind == "check":
				return c.check
			case kind == "triggers" && c.facts == nil:
				return row("[Audit]", 0)
			case kind == "references" && c.facts == nil:
				return row("ALTER TABLE Extra;")
			case kind == "burdens" && c.facts == nil:
				return row("it is a temporal table, so that deleted tokens stay in its history")
			case kind == "pages":
				return row(2048)
			case kind == "may see holders" && c.facts == nil:
				return row(0)
			case kind == "jobs":
				return c.jobs
			case kind == "facts" && c.facts != nil:
				return c.facts
			}
			return table.answer(kind)
		}})
		checked := policy
		checked.Action = purge.Check
		r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), checked, func(purge.DatabaseResult) {}).Databases[0]
		var found, text string
		for _, f := range r.Findings {
			found += f.Level + " " + f.Code + "\n"
			text += f.Message + "\n"
		}
		if !contains(found, c.want...) || !contains(text, c.texts...) {
			t.Errorf("%s%s, want %q, %q", found, text, c.want, c.texts)
		}
		if failed := strings.Contains(found, "error"); failed != (r.Status == purge.Failed) {
			t.Errorf("%+v", r)
		}
		if sent := s.statements(); slices.Contains(sent, "delete") || slices.Contains(sent, "lock") {
			t.Errorf("a check sent %v", sent)
		}
	}
}

func TestADatetimeIsATickOfTheServer(t *testing.T) {
	day := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for _, base := range []time.Time{day, time.Date(1816, 2, 29, 23, 59, 59, 0, time.UTC)} {
		for ms, want := range map[int]int{0: 0, 2: 0, 3: 3, 6: 3, 7: 7, 9: 7, 10: 10, 999: 997} {
			if got := datetime(base.Add(time.Duration(ms) * time.Millisecond)); !got.Equal(base.Add(time.Duration(want) * time.Millisecond)) {
				t.Errorf("%d ms: %s", ms, got)
			}
		}
	}
	for at, want := range map[int]int{0: 3, 3: 7, 7: 10, 997: 1000} {
		if got := next(day.Add(time.Duration(at) * time.Millisecond)); !got.Equal(day.Add(time.Duration(want) * time.Millisecond)) {
			t.Errorf("after %d ms: %s", at, got)
		}
	}
}
