package sqlserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// States that only a real SQL Server gets into, as Microsoft's documentation tells of
// them: numbers, severities and texts are those of "Database Engine events and errors".

// opens opens the database of a server that refuses the log-in with answer.
func opens(t *testing.T, refuse []byte) error {
	t.Helper()
	s := newStandIn(t, &standIn{refuse: refuse})
	there := s.server()
	there.Memory = new(Memory)
	conn, err := there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
	if err == nil {
		conn.Close()
	}
	return err
}

func TestAnErrorAtTheLoginSaysWhatItIs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer []byte
		is     error // nil is none that a later try may mend
		code   string
		want   []string
	}{
		"paused":                {failure(17142, 14, "SQL Server service has been paused."), purge.ErrNotYet, "", []string{"17142"}},
		"starting":              {failure(17187, 16, "SQL Server is not ready to accept new client connections."), purge.ErrNotYet, "", []string{"17187"}},
		"stopping":              {failure(17188, 16, "SQL Server cannot accept new connections, because it is shutting down."), purge.ErrNotYet, "", nil},
		"without a thread":      {failure(17189, 16, "SQL Server failed with error code 0x5a to spawn a thread to process a new login or connection."), purge.ErrNotYet, "", nil},
		"under load":            {failure(17197, 16, "Login failed due to timeout; the connection has been closed."), purge.ErrNotYet, "", nil},
		"upgrading":             {failure(18401, 14, "Login failed for user 'joe'. Reason: Server is in script upgrade mode."), purge.ErrNotYet, "", []string{"script upgrade mode"}},
		"shutting down":         {failure(18451, 14, "Login failed for user 'joe'. Only administrators may connect at this time."), purge.ErrNotYet, "", nil},
		"not recovered":         {failure(921, 14, "Database 'EdFi_Admin' has not been recovered yet."), purge.ErrNotYet, "", nil},
		"being recovered":       {failure(922, 14, "Database 'EdFi_Admin' is being recovered."), purge.ErrNotYet, "", nil},
		"in transition":         {failure(952, 16, "Database 'EdFi_Admin' is in transition. Try the statement later."), purge.ErrNotYet, "", nil},
		"not started":           {failure(941, 14, "Database 'EdFi_Admin' cannot be opened because it is not started. Retry when the database is started."), purge.ErrNotYet, "", nil},
		"not activated":         {failure(913, 16, "Could not find database ID 7. Database may not be activated yet or may be in transition."), purge.ErrNotYet, "", nil},
		"without a quorum":      {failure(988, 14, "Unable to access database 'EdFi_Admin' because it lacks a quorum of nodes for high availability. Try the operation again later."), purge.ErrNotYet, "", []string{"quorum"}},
		"a mirror without one":  {failure(955, 14, "Database EdFi_Admin is enabled for Database Mirroring, but the database lacks quorum: the database cannot be opened. Check the partner and witness connections if configured."), purge.ErrNotYet, "", nil},
		"a mirror that settles": {failure(956, 14, "Database EdFi_Admin is enabled for Database Mirroring, but has not yet synchronized with its partner. Try the operation again later."), purge.ErrNotYet, "", nil},
		"a secondary settles":   {failure(4221, 16, "Login to read-secondary failed due to long wait on 'HADR_DATABASE_WAIT_FOR_TRANSITION_TO_VERSIONING'."), purge.ErrNotYet, "", nil},
		"failing over":          {failure(983, 14, "Unable to access availability database 'EdFi_Admin'."), purge.ErrNotYet, "", nil},
		"Azure is not there":    {failure(40613, 17, "Database is not currently available."), purge.ErrNotYet, "", nil},
		"Azure is busy":         {failure(49918, 16, "Cannot process request. Not enough resources."), purge.ErrNotYet, "", nil},
		"Babelfish stops":       {failure(anyError, 20, "login error: the database system is shutting down"), purge.ErrNotYet, "", []string{"shutting down"}},
		"Babelfish starts":      {failure(anyError, 20, "login error: the database system is starting up"), purge.ErrNotYet, "", nil},
		"Babelfish recovers":    {failure(anyError, 20, "login error: the database system is in recovery mode"), purge.ErrNotYet, "", nil},
		"Babelfish is not yet":  {failure(anyError, 20, "login error: the database system is not yet accepting connections"), purge.ErrNotYet, "", nil},
		"Babelfish is full":     {failure(anyError, 20, "login error: sorry, too many clients already"), purge.ErrNoSlot, "", nil},
		"Babelfish keeps slots": {failure(anyError, 20, "login error: remaining connection slots are reserved for roles with the SUPERUSER attribute"), purge.ErrNoSlot, "", nil},
		"no worker":             {failure(10928, 20, "The limit for the database is 60 and has been reached."), purge.ErrNoSlot, "", []string{"10928", "raise the limit"}},
		"no request":            {failure(10929, 16, "The server is currently too busy."), purge.ErrNoSlot, "", nil},
		"no connection":         {failure(17809, 20, "Could not connect because the maximum number of '32767' user connections has been reached."), purge.ErrNoSlot, "", nil},
		"wrong password":        {failure(18456, 14, "Login failed for user 'joe'."), purge.ErrLogin, "", []string{"the secret", "only one database contains"}},
		"expired password":      {failure(18487, 14, "Login failed for user 'joe'. Reason: The password of the account has expired."), purge.ErrLogin, "", []string{"expired", "CHECK_EXPIRATION"}},
		"password to change":    {failure(18488, 14, "Login failed for user 'joe'. Reason: The password of the account must be changed."), purge.ErrLogin, "", []string{"must be changed"}},
		"disabled login":        {failure(18470, 14, "Login failed for user 'joe'. Reason: The account is disabled."), purge.ErrLogin, "", []string{"ENABLE"}},
		"locked out":            {failure(18486, 14, "Login failed for user 'joe' because the account is currently locked out."), purge.ErrLogin, "", []string{"UNLOCK"}},
		"Windows only":          {failure(18452, 14, "Login failed. The login is from an untrusted domain."), nil, "", []string{"mixed mode"}},
		"server single-user":    {failure(18461, 14, "Login failed for user 'joe'. Reason: Server is in single user mode."), nil, "", []string{"without -m"}},
		"database single-user":  {failure(924, 14, "Database 'EdFi_Admin' is already open and can only have one user at a time."), nil, "", []string{"SET MULTI_USER"}},
		"restricted":            {failure(923, 14, "Database 'EdFi_Admin' is in restricted mode. Only the database owner and members of the dbcreator and sysadmin roles can access it."), nil, "", []string{"SET MULTI_USER"}},
		"suspect":               {failure(926, 14, "Database 'EdFi_Admin' cannot be opened. It has been marked SUSPECT by recovery."), nil, "", []string{"CHECKDB"}},
		"restoring":             {failure(927, 14, "Database 'EdFi_Admin' cannot be opened. It is in the middle of a restore."), nil, "no-database", []string{"in the middle of a restore"}},
		"offline":               {failure(942, 14, "Database 'EdFi_Admin' cannot be opened because it is offline."), nil, "", []string{"SET ONLINE"}},
		"files missing":         {failure(945, 14, "Database 'EdFi_Admin' cannot be opened due to inaccessible files."), nil, "", []string{"error log"}},
		"no user":               {failure(916, 14, "The server principal \"joe\" is not able to access the database."), nil, "no-access", []string{"role.sql", "916"}},
		"secondary":             {failure(976, 14, "The target database, 'EdFi_Admin', is participating in an availability group and is currently not accessible for queries."), nil, "reader-endpoint", []string{"writer's endpoint"}},
		"mirror":                {failure(954, 14, "The database \"EdFi_Admin\" cannot be opened. It is acting as a mirror database."), nil, "reader-endpoint", []string{"writer's endpoint"}},
		"read-intent secondary": {failure(978, 14, "The target database ('EdFi_Admin') is in an availability group and is currently accessible for connections when the application intent is set to read only."), nil, "reader-endpoint", []string{"writer's endpoint"}},
		"logon trigger":         {failure(17892, 14, "Logon failed for login 'joe' due to trigger execution."), nil, "", []string{"logon trigger"}},
		"anything":              {failure(18999, 14, "Something else."), nil, "", []string{"Something else", "18999"}},
	} {
		err := opens(t, c.answer)
		for _, kind := range []error{purge.ErrNotYet, purge.ErrNoSlot, purge.ErrLogin, purge.ErrLost, purge.ErrLocked} {
			is := c.is == kind || kind == purge.ErrLost && (c.is == purge.ErrNotYet || c.is == purge.ErrNoSlot) //nolint:errorlint // the very one
			if errors.Is(err, kind) != is {
				t.Errorf("%s: is %q: %t; %v", name, kind, errors.Is(err, kind), err)
			}
		}
		unfit, _ := errors.AsType[purge.NotPurgeable](err)
		if err == nil || unfit.Kind.Code != c.code || !contains(err.Error(), c.want...) || strings.Contains(err.Error(), "joe") {
			t.Errorf("%s: %v, %q, want %q, %q", name, err, unfit.Kind.Code, c.code, c.want)
		}
	}
}

// Each number that means something, said of a delete, whatever its severity.
func TestEachErrorOfADeleteIsWhatItMeans(t *testing.T) {
	t.Parallel()
	is := map[meaning]error{
		locked: purge.ErrLocked, busy: purge.ErrBusy, badLogin: purge.ErrLogin, noDatabase: purge.ErrNotYet, notThere: purge.ErrNotYet, notYet: purge.ErrNotYet,
		noSlot: purge.ErrNoSlot, lost: purge.ErrLost, tableChanged: purge.ErrChanged,
	}
	kinds := map[meaning]purge.Kind{noDatabase: purge.NoDatabase, notThere: purge.NoDatabase, reader: purge.ReaderEndpoint, denied: purge.NoDeleteRight, outside: purge.NoAccess}
	var current atomic.Int32
	var class atomic.Int32
	table := newScript(7, 1, func(int64) []byte { return failure(current.Load(), byte(class.Load()), "The server says so.") })
	s := newStandIn(t, &standIn{answer: table.answer})
	there := s.server()
	there.Memory = new(Memory)
	try := func(number int32) error {
		conn, err := there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		current.Store(number)
		gone, err := conn.Delete(t.Context(), purge.Batch{Window: window{from: time.Now().Add(-time.Hour), to: time.Now(), most: 10}})
		if err == nil || gone.Rows != 0 || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%d: %+v, %v", number, gone, err)
		}
		return err
	}
	for _, severity := range []int32{14, 16, 21} {
		class.Store(severity)
		for number, meaning := range meanings {
			err := try(number)
			unfit, _ := errors.AsType[purge.NotPurgeable](err)
			if want := is[meaning]; want != nil && !errors.Is(err, want) || unfit.Kind.Code != kinds[meaning].Code {
				t.Errorf("%d of severity %d: %v, %q", number, severity, err, unfit.Kind.Code)
			}
		}
		for number, remedy := range remedies {
			if err := try(number); !contains(err.Error(), remedy) || errors.Is(err, purge.ErrLost) || errors.Is(err, purge.ErrLocked) || errors.Is(err, purge.ErrRefused) {
				t.Errorf("%d of severity %d: %v", number, severity, err)
			}
		}
	}
}

// catalogue is a server where one database can't be opened, and its catalogue says why.
func catalogue(t *testing.T, state []byte) error {
	t.Helper()
	s := newStandIn(t, &standIn{
		login: func(nth int32) []byte {
			if nth == 1 {
				return join(failure(4060, 11, `Cannot open database "EdFi_Admin" requested by the login.`), failure(18456, 14, "Login failed for user 'joe'."))
			}
			return nil
		},
		answer: func(string) []byte { return state },
	})
	_, err := s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
	return err
}

func TestWhyADatabaseCantBeOpenedIsLookedUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		state  []byte
		code   string
		notYet bool
		want   string
	}{
		"none":        {rowless(), "no-database", false, "does not exist on this server"},
		"offline":     {row("offline", "multi_user", 1), "no-database", false, "not online, but offline"},
		"restoring":   {row("restoring", "multi_user", 1), "no-database", false, "restoring"},
		"suspect":     {row("suspect", "multi_user", 1), "no-database", false, "suspect"},
		"emergency":   {row("emergency", "single_user", 1), "no-database", false, "emergency"},
		"recovering":  {row("recovering", "multi_user", 1), "no-database", true, "being recovered"},
		"single-user": {row("online", "single_user", 1), "no-database", false, "SET MULTI_USER"},
		"restricted":  {row("online", "restricted_user", 0), "no-database", false, "SET MULTI_USER"},
		"no user":     {row("online", "multi_user", 0), "no-access", false, "role.sql"},
		"back again":  {row("online", "multi_user", 1), "no-database", true, "EdFi_Admin"},
		"unseen":      {failure(229, 14, "denied"), "no-database", false, "may not enter"},
	} {
		err := catalogue(t, c.state)
		unfit, _ := errors.AsType[purge.NotPurgeable](err)
		if unfit.Kind.Code != c.code || errors.Is(err, purge.ErrNotYet) != c.notYet || !contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %q", name, err, unfit.Kind.Code)
		}
	}
}

// A session is killed, and the database can't be opened for a while.
func TestADatabaseThatWasOpenIsWaitedForAndNeverSkipped(t *testing.T) {
	t.Parallel()
	cannotOpen := join(failure(4060, 11, `Cannot open database "EdFi_Admin" requested by the login.`), failure(18456, 14, "Login failed for user 'joe'."))
	for name, c := range map[string]struct {
		refuse []byte
		status purge.Status
	}{
		"4060":    {cannotOpen, purge.Complete},
		"911":     {failure(911, 16, "Database 'EdFi_Admin' does not exist."), purge.Complete},
		"921":     {failure(921, 14, "has not been recovered yet"), purge.Complete},
		"927":     {failure(927, 14, "It is in the middle of a restore."), purge.Complete},
		"922":     {failure(922, 14, "is being recovered"), purge.Complete},
		"952":     {failure(952, 16, "is in transition"), purge.Complete},
		"988":     {failure(988, 14, "lacks a quorum of nodes for high availability"), purge.Complete}, // as in a fail-over of RDS
		"941":     {failure(941, 14, "is not started"), purge.Complete},
		"701":     {shortMemory, purge.Complete},
		"17142":   {failure(17142, 14, "paused"), purge.Complete},
		"17187":   {failure(17187, 16, "is not ready to accept new client connections"), purge.Complete},
		"17188":   {failure(17188, 16, "it is shutting down"), purge.Complete},
		"18401":   {failure(18401, 14, "script upgrade mode"), purge.Complete},
		"18451":   {failure(18451, 14, "Only administrators may connect at this time."), purge.Complete},
		"40613":   {failure(40613, 17, "not currently available"), purge.Complete},
		"10928":   {failure(10928, 20, "limit reached"), purge.Complete},
		"10929":   {failure(10929, 16, "the server is currently too busy"), purge.Complete},
		"cut":     {hangUp, purge.Complete},
		"revoked": {failure(916, 14, "is not able to access the database"), purge.Failed},
		"942":     {failure(942, 14, "it is offline"), purge.Failed},
		"945":     {failure(945, 14, "inaccessible files"), purge.Failed},
		"18461":   {failure(18461, 14, "single user mode"), purge.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := newScript(14, 2, quietly)
			var deletes atomic.Int32
			s := newStandIn(t, &standIn{
				answer: func(kind string) []byte {
					if kind == "delete" && deletes.Add(1) == 2 {
						return failure(596, 21, "Cannot continue the execution because the session is in the kill state.")
					}
					if kind == "state" { // the catalogue, for 4060
						return rowless()
					}
					return table.answer(kind)
				},
				login: func(nth int32) []byte {
					if nth == 2 || nth == 3 {
						return c.refuse
					}
					return nil
				},
			})
			there := s.server()
			there.Memory = new(Memory)
			matched := target(there, "EdFi_Admin")
			matched.Databases[0].Matched = true
			r := purge.Run(t.Context(), matched, policy, func(purge.DatabaseResult) {}).Databases[0]
			want := map[purge.Status]int64{purge.Complete: 14, purge.Failed: 7}[c.status]
			if r.Status != c.status || r.DeletedRows != want {
				t.Errorf("%+v", r)
			}
		})
	}
}

var shortMemory = failure(701, 17, "There is insufficient system memory in resource pool 'default' to run this query.")

func TestShortMemoryRestsOnTheConnectionThatThereIs(t *testing.T) {
	t.Parallel()
	for _, number := range []int32{701, 802, 1204, 8628, 8645, 8651} {
		table := newScript(14, 2, func(n int64) []byte {
			if n == 1 {
				return failure(number, 19, "There is insufficient system memory to run this query.")
			}
			return nil
		})
		s := newStandIn(t, &standIn{answer: table.answer})
		r := run(t, s.server(), "EdFi_Admin")
		if r.Status != purge.Complete || r.DeletedRows != 14 || count(s.statements(), "login") != 1 {
			t.Errorf("%d: %+v", number, r)
		}
	}
}

// What is short is memory, and nobody holds a lock.
func TestMemoryThatStaysShortIsNotToldAsALock(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"delete", "oldest", "end", "facts"} {
		table := newScript(7, 1, quietly)
		s := newStandIn(t, &standIn{answer: func(k string) []byte {
			if k == kind {
				return shortMemory
			}
			return table.answer(k)
		}})
		to, p := target(s.server(), "EdFi_Admin"), policy
		p.BatchTarget, p.MaxDuration = 50*time.Millisecond, 2*time.Second
		var waits []string
		to.Waiting = func(_, why string) { waits = append(waits, why) } // one worker: one at a time
		r := purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]
		if r.Status != purge.Partial || r.StopReason != purge.MaxDuration || !found(r, "short-of-memory") || found(r, "locked-rows") || found(r, "slow-rows") || r.OldestExpiredAge() != nil && *r.OldestExpiredAge() == 0 {
			t.Errorf("%s: %+v", kind, r)
		}
		if waited := strings.Join(waits, "; "); !contains(waited, "short of memory") || contains(waited, "locked") || !contains(fmt.Sprint(r.Findings), "resource pool 'default'", "701") {
			t.Errorf("%s: it waited for %q, %+v", kind, waited, r)
		}
	}
}

func TestMemoryThatIsShortAtTheOpeningIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"login", "facts", "any", "lock"} {
		table := newScript(7, 1, quietly)
		var came atomic.Int32
		s := newStandIn(t, &standIn{
			login: func(nth int32) []byte {
				if kind == "login" && nth < 3 {
					return shortMemory
				}
				return nil
			},
			answer: func(k string) []byte {
				if k == kind && came.Add(1) < 3 {
					return shortMemory
				}
				return table.answer(k)
			},
		})
		if r := run(t, s.server(), "EdFi_Admin"); r.Status != purge.Complete || r.DeletedRows != 7 {
			t.Errorf("%s: %+v", kind, r)
		}
	}
}

func TestWhatLastsIsAFailureOnce(t *testing.T) {
	t.Parallel()
	for number, want := range map[int32]string{
		9002: "transaction log is full", 1105: "the disk or the filegroup is full", 1101: "the disk or the filegroup is full",
		3998: "TRY and CATCH", 3930: "TRY and CATCH", 823: "DBCC CHECKDB", 824: "DBCC CHECKDB", 605: "DBCC CHECKDB", 8649: "query governor", 11305: "SET COMPATIBILITY_LEVEL",
	} {
		table := newScript(7, 1, func(int64) []byte { return failure(number, 24, "The server says so.") }) // the severity of damage
		s := newStandIn(t, &standIn{answer: table.answer})
		r := run(t, s.server(), "EdFi_Admin")
		if r.Status != purge.Failed || !contains(r.Error, want) || table.deletes.Load() != 1 || count(s.statements(), "login") != 1 {
			t.Errorf("%d: %+v after %d deletes", number, r, table.deletes.Load())
		}
	}
}

func TestATableThatIsAlteredWhileItIsOpenedIsWaitedFor(t *testing.T) {
	t.Parallel()
	table := newScript(7, 1, quietly)
	var came atomic.Int32
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		if kind == "facts" && came.Add(1) < 3 {
			return failure(1222, 16, "Lock request time out period exceeded.")
		}
		return table.answer(kind)
	}})
	waits := policy
	waits.ConnectTimeout = 10 * time.Second
	if r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), waits, func(purge.DatabaseResult) {}).Databases[0]; r.Status != purge.Complete || r.DeletedRows != 7 {
		t.Errorf("%+v", r)
	}
	came.Store(-1 << 20)
	waits.ConnectTimeout, waits.MaxDuration = 100*time.Millisecond, 2*time.Second // which is the time left
	r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), waits, func(purge.DatabaseResult) {}).Databases[0]
	if r.Status != purge.Partial || r.StopReason != purge.MaxDuration || !found(r, "locked-rows") || r.Findings[0].Level != purge.LevelWarning || r.OldestExpiredAge() != nil {
		t.Errorf("%+v", r)
	}
}

// A server that shuts down, or fails over, may take a log-in and end the connection at the
// first statements.
func TestAConnectionThatEndsAsTheTableIsExaminedIsOpenedAnew(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"facts", "lock"} {
		table := newScript(7, 1, quietly)
		var came atomic.Int32
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			if kind == at && came.Add(1) == 1 {
				return hangUp
			}
			return table.answer(kind)
		}})
		p := policy
		p.ConnectTimeout = time.Minute
		if r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]; r.Status != purge.Complete || r.DeletedRows != 7 || s.came.Load() != 2 {
			t.Errorf("%s: %+v", at, r)
		}
	}
}

// The next table is opened over the same connection.
func TestAnotherTableThatIsAlteredIsWaitedForAsWell(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string][]byte{"a lock": failure(1222, 16, "Lock request time out period exceeded."), "memory": shortMemory} {
		table := newScript(7, 1, quietly)
		var came atomic.Int32
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch n := came.Load(); {
			case kind == "facts" && came.Add(1) > 1 && n < 3:
				return refused
			case kind == "clock":
				return row(time.Now().UTC())
			case kind == "unknown": // the look for the oldest of its rows
				return row(nil, nil)
			}
			return table.answer(kind)
		}})
		to, p := target(s.server(), "EdFi_Admin"), policy
		to.Tables, p.ConnectTimeout = []purge.Table{purge.ClientAccessTokens, purge.AdminTokens}, time.Nanosecond
		if r := purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]; r.Status != purge.Complete || r.DeletedRows != 7 || came.Load() < 4 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// The time that the last statement on one table had says nothing of the next table's.
func TestAnotherTableIsExaminedWithATimeOfItsOwn(t *testing.T) {
	t.Parallel()
	table := newScript(7, 1, quietly)
	var came atomic.Int32
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch {
		case kind == "facts" && came.Add(1) == 2:
			time.Sleep(4 * time.Second)
		case kind == "clock":
			return row(time.Now().UTC())
		}
		return table.answer(kind)
	}})
	server := s.server()
	server.Linger = time.Millisecond
	conn, err := server.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	brief, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := conn.Count(brief, conn.Expired(time.Time{}, time.Now())); err != nil {
		t.Fatal(err)
	}
	if err := conn.Switch(t.Context(), purge.AdminTokens); err != nil {
		t.Error(err)
	}
}

// One that reads no cancellation keeps its connection where the batch ends soon after.
func TestABatchHasTheTimeThatItsCancellationWouldTake(t *testing.T) {
	t.Parallel()
	for _, exact := range []bool{true, false} {
		var slow atomic.Bool
		table := newScript(7, 1, func(int64) []byte {
			if slow.Swap(false) {
				time.Sleep(time.Second)
			}
			return nil
		})
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			if kind == "facts" {
				return examined(func(f *facts) { f.exact = exact })
			}
			return table.answer(kind)
		}})
		server := s.server()
		server.Longest = 500 * time.Millisecond
		conn, err := server.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		slow.Store(true)
		gone, err := conn.Delete(t.Context(), purge.Batch{Window: window{from: time.Now().Add(-time.Hour), to: time.Now(), most: 10}})
		if late := errors.Is(err, purge.ErrTimeout); late != exact || !late && gone.Rows != 7 {
			t.Errorf("exact %t: %+v, %v", exact, gone, err)
		}
	}
}

func TestALockThatACutMeetsIsTold(t *testing.T) {
	t.Parallel()
	table := newScript(7, 1, quietly)
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		if kind == "end" {
			return failure(1222, 16, "Lock request time out period exceeded.")
		}
		return table.answer(kind)
	}})
	if waited, r := runBriefly(t, s); r.Status != purge.Partial || !found(r, "locked-rows") || !contains(waited, "the table is locked") {
		t.Errorf("it waited for %q, %+v", waited, r)
	}
}

// The first statement is bounded, and with it all others at the opening.
func TestTheLongestWaitForALockIsSaidFirst(t *testing.T) {
	if first, _, _ := strings.Cut(strings.TrimSpace(sqlSettings), ";"); first != "SET LOCK_TIMEOUT %d" {
		t.Errorf("the first statement is %s", first)
	}
}

func TestWhatHasChangedIsExaminedAnew(t *testing.T) {
	t.Parallel()
	for _, refused := range [][]byte{
		failure(changed, 16, "the table has changed"),
		failure(208, 16, "Invalid object name 'dbo.ClientAccessTokens'."),
		failure(207, 16, "Invalid column name 'Expiration'."),
	} {
		table := newScript(14, 2, func(n int64) []byte {
			if n == 2 {
				return refused
			}
			return nil
		})
		s := newStandIn(t, &standIn{answer: table.answer})
		r := run(t, s.server(), "EdFi_Admin")
		if sent := s.statements(); r.Status != purge.Complete || r.DeletedRows != 14 || count(sent, "facts") != 2 || count(sent, commit) != 2 {
			t.Errorf("%+v, sent %v", r, sent)
		}
	}
}

func TestABatchThatLeavesRowsIsUndoneAndProved(t *testing.T) {
	t.Parallel()
	table := newScript(14, 2, func(n int64) []byte {
		if n == 2 {
			return failure(rowsLeft, 16, "rows are left")
		}
		return nil
	})
	s := newStandIn(t, &standIn{answer: table.answer})
	r := run(t, s.server(), "EdFi_Admin")
	if sent := s.statements(); r.Status != purge.Complete || r.DeletedRows != 14 || r.Batches != 2 || count(sent, "held") != 2 || count(sent, commit) != 2 {
		t.Errorf("%+v, sent %v", r, sent)
	}
}

func TestWhileATriggerIsThereEachBatchIsProved(t *testing.T) {
	t.Parallel()
	for _, triggered := range []bool{true, false} {
		table := newScript(21, 3, quietly)
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			if kind == "facts" {
				return examined(func(f *facts) { f.triggered = triggered })
			}
			return table.answer(kind)
		}})
		r := run(t, s.server(), "EdFi_Admin")
		sent, proofs := s.statements(), 1
		if triggered {
			proofs = count(sent, "delete")
		}
		if r.Status != purge.Complete || count(sent, "held") != proofs {
			t.Errorf("%t: %+v, sent %v", triggered, r, sent)
		}
	}
}

func TestATriggersRefusalIsOne(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string][]byte{
		"a foreign key":   failure(547, 16, "The DELETE statement conflicted with the REFERENCE constraint."),
		"RAISERROR":       failureIn("Keep", 50000, 16, "keep it"),
		"THROW":           failureIn("Keep", 51234, 16, "keep it"),
		"a division by 0": failureIn("Keep", 8134, 16, "Divide by zero error encountered."),
		"a rollback":      failure(3609, 16, "The transaction ended in the trigger. The batch has been aborted."),
	} {
		table := newScript(7, 1, func(int64) []byte { return answer })
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
		if gone, err := conn.Delete(t.Context(), cut[0]); !errors.Is(err, purge.ErrRefused) || gone.Rows != 0 {
			t.Errorf("%s: %+v, %v", name, gone, err)
		}
	}
}

func TestATriggerThatCommitsIsToldAndCounted(t *testing.T) {
	t.Parallel()
	table := newScript(14, 2, nil)
	table.delete = func(int64) []byte {
		table.rows.Add(-7)
		return failure(3609, 16, "The transaction ended in the trigger. The batch has been aborted.")
	}
	s := newStandIn(t, &standIn{answer: table.answer})
	r := run(t, s.server(), "EdFi_Admin")
	if r.Status != purge.Failed || r.DeletedRows != 7 || !contains(r.Error, "commits") || table.deletes.Load() != 1 {
		t.Errorf("%+v after %d deletes", r, table.deletes.Load())
	}
}

// Where the connection is lost as well, nobody can tell how many rows went, and that is
// told.
func TestATriggerThatCommitsAndALostConnectionAreAnUncertainCount(t *testing.T) {
	t.Parallel()
	ended := failure(3609, 16, "The transaction ended in the trigger. The batch has been aborted.")
	for name, c := range map[string]struct {
		triggered bool // as it was examined
		delete    []byte
		looks     []byte // what a look at what is left says then
	}{
		"in the delete":                 {true, hangUp, nil},
		"in the look behind it":         {false, ended, hangUp},
		"or that look meets a deadlock": {false, ended, failure(1205, 13, "deadlock")},
	} {
		table := newScript(7, 1, nil)
		var gone atomic.Bool
		table.delete = func(int64) []byte {
			table.rows.Store(0)
			gone.Store(true)
			return c.delete
		}
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch {
			case kind == "facts":
				return examined(func(f *facts) { f.triggered = c.triggered })
			case kind == "held" && c.looks != nil && gone.Swap(false):
				return c.looks
			}
			return table.answer(kind)
		}})
		r := run(t, s.server(), "EdFi_Admin")
		if r.Status != purge.Complete || r.DeletedRows != 0 || !slices.ContainsFunc(r.Findings, func(f purge.Finding) bool { return f.Code == purge.CountUncertain.Code }) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestRowsThatAPolicyHidesFail(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		facts func(*facts)
		any   int
	}{
		"a policy that the login sees": {func(f *facts) { f.filtered = true }, 1},
		"rows that it does not see":    {nil, 0},
	} {
		for _, action := range []purge.Action{purge.Purge, purge.Check, purge.DryRun} {
			table := newScript(7, 1, quietly)
			s := newStandIn(t, &standIn{answer: func(kind string) []byte {
				switch kind {
				case "facts":
					return examined(c.facts)
				case "any":
					return row(c.any)
				}
				return table.answer(kind)
			}})
			p := policy
			p.Action = action
			r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]
			if r.Status != purge.Failed || r.DeletedRows != 0 || r.Findings[0].Code != "row-security" || r.Findings[0].Level != purge.LevelError {
				t.Errorf("%s, %s: %+v", name, action, r)
			}
		}
	}
}

// A login that may SELECT may see the table's statistics, unless there is a policy.
func TestAPolicyThatTheLoginMayNotSeeIsSuspected(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer []byte
		want   bool
	}{
		"no policy":     {done(0), false},
		"a policy":      {failure(2557, 14, "User 'joe' does not have permission to run DBCC SHOW_STATISTICS for object 'ClientAccessTokens'."), true},
		"another error": {failure(2767, 16, "Could not locate statistics in the system catalogs."), false},
	} {
		for _, action := range []purge.Action{purge.Purge, purge.Check} {
			table := newScript(7, 1, quietly)
			s := newStandIn(t, &standIn{answer: func(kind string) []byte {
				switch kind {
				case "statistics":
					return c.answer
				case "check":
					return row("SQL Server", "16.0.1", "Web Edition", 150, 1, 0, 1)
				}
				return table.answer(kind)
			}})
			p := policy
			p.Action = action
			r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]
			if r.Status != purge.Complete || found(r, "policy-unseen") != c.want {
				t.Errorf("%s, %s: %+v", name, action, r)
			}
		}
	}
}

func TestACheckTriesADeleteWhereSomethingMayBeInTheWay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer []byte
		status purge.Status
		code   string // "" is no finding about it
	}{
		"all go":                {join(output("rows", 7), output("deleted", 7), done(0)), purge.Complete, ""},
		"some stay":             {join(output("rows", 7), output("deleted", 3), done(0)), purge.Failed, "kept-rows"},
		"a foreign key":         {failure(547, 16, "The DELETE statement conflicted with the REFERENCE constraint."), purge.Failed, "refused-rows"},
		"a policy":              {failure(33504, 16, "The attempted operation failed because the target object has a block predicate."), purge.Failed, "refused-rows"},
		"a trigger":             {failureIn("Keep", 51000, 16, "keep it"), purge.Failed, "refused-rows"},
		"a rollback":            {failure(3609, 16, "The transaction ended in the trigger. The batch has been aborted."), purge.Failed, "refused-rows"},
		"a commit":              {failure(endsTransaction, 16, "a trigger ends the transaction"), purge.Failed, "refused-rows"},
		"what can't be undone":  {failure(mayCommit, 16, "[Audit]"), purge.Complete, "not-rehearsed"},
		"a lock":                {failure(1222, 16, "Lock request time out period exceeded."), purge.Complete, ""},
		"a transaction log":     {failure(9002, 17, "The transaction log is full."), purge.Failed, ""},
		"no right to delete it": {failure(229, 14, "The DELETE permission was denied"), purge.Failed, "no-delete-right"},
	} {
		table := newScript(7, 1, quietly)
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch kind {
			case "check": // as for a login that sees no triggers and foreign keys
				return row("SQL Server", "16.0.1", "Web Edition", 150, 1, 0, 0)
			case "rehearse":
				return c.answer
			}
			return table.answer(kind)
		}})
		p := policy
		p.Action = purge.Check
		r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]
		if r.Status != c.status || c.code != "" && !found(r, c.code) {
			t.Errorf("%s: %+v", name, r)
		}
		for _, code := range []string{"kept-rows", "refused-rows", "not-rehearsed"} {
			if code != c.code && found(r, code) {
				t.Errorf("%s: found %s", name, code)
			}
		}
		sent := s.statements()
		failed := name != "all go" && name != "some stay"
		if count(sent, "rehearse") != 1 || count(sent, commit)+count(sent, begin) != 0 || count(sent, "undo") == 1 != failed {
			t.Errorf("%s: sent %v", name, sent)
		}
	}
}

// As an append-only ledger table refuses each delete, and nobody sees a trigger.
func TestACheckTriesADeleteWhereItDoesMoreThanEdFisTableAsks(t *testing.T) {
	t.Parallel()
	table := newScript(7, 1, quietly)
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch kind {
		case "check": // as for a login that sees all
			return row("SQL Server", "16.0.1", "Web Edition", 150, 1, 0, 1)
		case "burdens":
			return row("it is an append-only ledger table, which refuses each delete")
		case "rehearse":
			return failure(37359, 16, "Updates are not allowed for the append only Ledger table 'dbo.ClientAccessTokens'.")
		}
		return table.answer(kind)
	}})
	p := policy
	p.Action = purge.Check
	r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]
	if r.Status != purge.Failed || !contains(r.Error, "37359") {
		t.Errorf("%+v", r)
	}
}

// Whatever a trigger does, the transaction of a rehearsal is its own, and ends with it.
func TestARehearsalEndsInARollback(t *testing.T) {
	begins, ends := strings.Index(sqlRehearse, "BEGIN TRANSACTION"), strings.Index(sqlRehearse, "ROLLBACK TRANSACTION")
	refuses, deletes := strings.Index(sqlRehearse, sqlMayCommit), strings.Index(sqlRehearse, "DELETE TOP")
	if begins < 0 || refuses < begins || deletes < refuses || ends < deletes || !strings.HasSuffix(sqlRehearse, "ROLLBACK TRANSACTION") || strings.Count(sqlRehearse, "DELETE TOP") != 1 {
		t.Errorf("%s", sqlRehearse)
	}
}

func TestATableThatIsNotEdFisIsTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		facts func(*facts)
		code  string
		want  string
	}{
		"set read-only":         {func(f *facts) { f.updates = setReadOnly }, "read-only-database", "SET READ_WRITE"},
		"a view":                {func(f *facts) { f.kind = "a view" }, "wrong-table", "a view"},
		"a synonym":             {func(f *facts) { f.oid, f.selectable = 0, false }, "wrong-table", "a synonym"},
		"unseen on Babelfish":   {func(f *facts) { f.exact, f.oid, f.selectable = false, 0, false }, "no-select-right", "GRANT SELECT, DELETE"},
		"memory-optimized":      {func(f *facts) { f.kind = "memory-optimized" }, "wrong-table", "memory-optimized"},
		"no key":                {func(f *facts) { f.keyType = "" }, "wrong-table", "no column Id"},
		"another database":      {func(f *facts) { f.database = "EdFi_Other" }, "other-database", "EdFi_Other"},
		"a name with a blank":   {func(f *facts) { f.database = "EdFi_Admin " }, "other-database", "as the server has it"},
		"a name in full width":  {func(f *facts) { f.database = "ＥdFi_Admin" }, "other-database", "as the server has it"},
		"a name in other cases": {func(f *facts) { f.database = "EDFI_ADMIN" }, "", ""},
	} {
		table := newScript(7, 1, quietly)
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			if kind == "facts" {
				return examined(c.facts)
			}
			return table.answer(kind)
		}})
		r := run(t, s.server(), "EdFi_Admin")
		if c.code == "" {
			if r.Status != purge.Complete {
				t.Errorf("%s: %+v", name, r)
			}
			continue
		}
		if r.Status != purge.Failed || r.DeletedRows != 0 || r.Findings[0].Code != c.code || !contains(r.Error, c.want) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestAnAnswerThatMakesNoSenseIsNoLostConnection(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string][]byte{"no row": rowless(), "a NULL": row(nil), "too many columns": row(1, 2, 3)} {
		table := newScript(7, 1, quietly)
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			if kind == "any" {
				return answer
			}
			return table.answer(kind)
		}})
		if r := run(t, s.server(), "EdFi_Admin"); r.Status != purge.Failed || contains(r.Error, "no connection") || count(s.statements(), "login") != 1 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestAServerThatIsTooOldIsToldAsThat(t *testing.T) {
	t.Parallel()
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch kind {
		case "facts":
			return failure(207, 16, "Invalid column name 'temporal_type'.")
		case "version":
			return row("12.0.6024.0")
		}
		return nil
	}})
	for _, action := range []purge.Action{purge.Purge, purge.Check} {
		p := policy
		p.Action = action
		r := purge.Run(t.Context(), target(s.server(), "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]
		if r.Status != purge.Failed || !contains(r.Error, "12.0.6024.0", "2017") || count(s.statements(), "login") != 1 {
			t.Errorf("%+v", r)
		}
	}
}

// Ranges of such a key do not tell rows apart: they leave as many at a time as a
// batch may have.
func TestAnotherKeyIsPurgedAllTheSame(t *testing.T) {
	t.Parallel()
	table := newScript(21, 1, nil)
	table.delete = func(int64) []byte {
		table.rows.Add(-7)
		return join(output("deleted", 7), output("took", 100), done(0))
	}
	at := time.Now().UTC().Add(-time.Hour)
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch kind {
		case "facts":
			return examined(func(f *facts) { f.keyType = "decimal" })
		case "end":
			return row(at, at)
		case "oldest":
			if table.rows.Load() > 0 {
				return row(at, at)
			}
		}
		return table.answer(kind)
	}})
	if r := run(t, s.server(), "EdFi_Admin"); r.Status != purge.Complete || r.DeletedRows != 21 {
		t.Errorf("%+v", r)
	}
}

// A look that passed over the oldest row, as somebody has it locked, must not say that
// nothing older is there.
func TestTheOldestRowIsThatOfAllAlthoughItIsLocked(t *testing.T) {
	t.Parallel()
	locked, free := time.Now().UTC().Add(-48*time.Hour).Truncate(time.Second), time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		if kind == "oldest" {
			return row(locked, free)
		}
		return (&script{}).answer(kind)
	}})
	conn, err := s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	at, found, err := conn.Oldest(t.Context(), conn.Expired(time.Time{}, time.Now()), purge.Trail{})
	if err != nil || !at.Equal(locked) || !found.(window).from.Equal(free) {
		t.Errorf("%s, %+v, %v", at, found, err)
	}
}

// silences are the phases at which a network swallows everything from then on.
func TestASilentNetworkLeavesTimeForTheAnswer(t *testing.T) {
	t.Parallel()
	const stopBefore = time.Second
	for _, phase := range []string{"connection", "login", "state", "facts", "any", "statistics", "lock", "oldest", "end", "held", "delete", begin, commit, "issued", "may see holders", "holders", "unlock"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			table := newScript(21, 3, quietly)
			var silent atomic.Bool
			s := newStandIn(t, &standIn{
				silent: phase == "connection",
				answer: func(kind string) []byte {
					switch {
					case silent.Load() || kind == phase:
						silent.Store(true)
						return noAnswer
					case kind == "delete" && strings.HasSuffix(phase, "holders"): // who is asked for then
						return failure(1222, 16, "Lock request time out period exceeded.")
					case kind == "may see holders":
						return row(1)
					}
					return table.answer(kind)
				},
				login: func(nth int32) []byte {
					switch {
					case silent.Load() || phase == "login":
						return noAnswer
					case phase == "state" && nth == 1: // then it is looked up why
						return failure(4060, 11, "Cannot open database")
					}
					return nil
				},
			})
			there := s.server()
			there.Memory, there.Linger = new(Memory), stopBefore/8
			p := policy
			p.StopBefore, p.BatchTarget, p.ConnectTimeout = stopBefore, 50*time.Millisecond, time.Minute
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second+stopBefore)
			defer cancel()
			r := purge.Run(ctx, target(there, "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]
			if done := r.Status == purge.Complete; ctx.Err() != nil || done != (phase == "unlock") || r.Status == purge.Skipped {
				t.Errorf("%v, %+v", ctx.Err(), r)
			}
		})
	}
}

// A table of 200 slices takes ten times as long to read as a run lasts, so that no look
// over all of it ever ends.
func TestWithoutAnIndexEachRunGetsOnHoweverLongALookTakes(t *testing.T) {
	t.Parallel()
	const (
		lasts  = 2 * time.Second
		slices = 200
	)
	reading := 10 * lasts / slices
	table := newScript(7*slices, slices, quietly)
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch kind {
		case "facts":
			return examined(func(f *facts) { f.indexed, f.rows = false, (slices-1)*sliceRows })
		case "oldest":
			return noAnswer
		case "end":
			time.Sleep(reading)
			return rowless() // fewer than a batch
		case "held", "delete":
			time.Sleep(reading)
		}
		return table.answer(kind)
	}})
	for range 3 {
		p := policy
		p.StopBefore, p.BatchTarget = time.Second, 50*time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), lasts+p.StopBefore)
		r := purge.Run(ctx, target(s.server(), "EdFi_Admin"), p, func(purge.DatabaseResult) {}).Databases[0]
		if r.Status != purge.Partial || r.StopReason != purge.Deadline || r.DeletedRows == 0 || r.OldestExpiredAge() != nil || ctx.Err() != nil {
			t.Errorf("%v, %+v", ctx.Err(), r)
		}
		cancel()
	}
}

func TestTokensThatAreIssuedAreOthersWrites(t *testing.T) {
	t.Parallel()
	var live atomic.Int64
	live.Store(40)
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		if kind != "issued" {
			return (&script{}).answer(kind)
		}
		if n := live.Load(); n < 100 { // the first asks for the floor as well
			live.Add(100)
			return row(time.Now().UTC(), int(n))
		}
		return row(int(live.Load() - 100))
	}})
	there := s.server()
	there.Memory = new(Memory)
	open := func() *conn {
		c, err := there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c.(*conn)
	}
	first, second := open(), open()
	for i, step := range []struct {
		conn   *conn
		issued int64
		want   int64
	}{{first, 0, 1}, {first, 0, 1}, {second, 5, 6}, {first, 0, 6}, {first, 3, 9}, {second, -4, 9}, {first, 2, 11}} {
		live.Add(step.issued)
		if got, err := step.conn.Writes(t.Context()); got != step.want || err != nil {
			t.Errorf("step %d: %d, %v, want %d", i, got, err, step.want)
		}
	}
	there.Memory = nil
	if got, err := open().Writes(t.Context()); got != 0 || err != nil {
		t.Errorf("without a memory: %d, %v", got, err)
	}
}

// certificate makes one with its key, signed by itself.
func certificate(t *testing.T, change func(*x509.Certificate), key any) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(template)
	}
	var public any
	switch k := key.(type) {
	case *rsa.PrivateKey:
		public = &k.PublicKey
	case *ecdsa.PrivateKey:
		public = &k.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// signedBySHA1 returns a certificate that its authority has signed by SHA-1.
func signedBySHA1(t *testing.T, key *rsa.PrivateKey) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	authority, err := x509.ParseCertificate(certificate(t, nil, key).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(4712), Subject: pkix.Name{CommonName: "old"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SignatureAlgorithm: x509.SHA1WithRSA,
	}, authority, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, authority
}

// negative gives a certificate a negative serial number, as no tool of today does.
func negative(t *testing.T, from tls.Certificate) tls.Certificate {
	t.Helper()
	der := from.Certificate[0]
	serial, err := asn1.Marshal(big.NewInt(4711))
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(der), string(serial))
	changed := []byte(string(der))
	changed[at+2] |= 0x80
	from.Certificate = [][]byte{changed}
	return from
}

func TestAServersCertificateAndItsRemedy(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := certificate(t, nil, key)
	old, authority := signedBySHA1(t, rsaKey)
	for name, c := range map[string]struct {
		server *tls.Config
		want   []string // nil is that it is taken
	}{
		"good":            {&tls.Config{Certificates: []tls.Certificate{good}}, nil},
		"no SAN":          {&tls.Config{Certificates: []tls.Certificate{certificate(t, func(c *x509.Certificate) { c.DNSNames = nil }, key)}}, []string{"subject alternative names", "another one"}},
		"negative serial": {&tls.Config{Certificates: []tls.Certificate{negative(t, good)}}, []string{"serial number is negative", "another one"}},
		"SHA-1":           {&tls.Config{Certificates: []tls.Certificate{old}}, []string{"signed by SHA-1", "another one"}},
		"RSA of 1,024":    {&tls.Config{Certificates: []tls.Certificate{certificate(t, nil, small)}}, nil},
		"RSA of 2,048":    {&tls.Config{Certificates: []tls.Certificate{certificate(t, nil, rsaKey)}}, nil},
		"TLS 1.1":         {&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, []string{"no TLS 1.2", "rds.tls12"}},
		"no safe cipher":  {&tls.Config{Certificates: []tls.Certificate{certificate(t, nil, rsaKey)}, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA256}}, []string{"share no TLS that is safe"}},
	} {
		for _, strict := range []bool{false, true} {
			pool := x509.NewCertPool()
			if parsed, err := x509.ParseCertificate(c.server.Certificates[0].Certificate[0]); err == nil {
				pool.AddCert(parsed)
			}
			if name == "SHA-1" { // of a root that is trusted no signature is looked at
				pool = x509.NewCertPool()
				pool.AddCert(authority)
			}
			server := c.server.Clone()
			if strict {
				server.NextProtos = []string{"tds/8.0"}
			}
			s := newStandIn(t, &standIn{tls: server, strict: strict, answer: (&script{}).answer})
			there := s.server()
			there.TLS, there.Strict = &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}, strict
			conn, err := there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
			if err == nil {
				conn.Close()
			}
			shaken := count(s.statements(), "handshake") > 0
			if c.want == nil && (!shaken || strict && err != nil) || c.want != nil && (err == nil || !contains(err.Error(), c.want...)) {
				t.Errorf("%s, strict %t: %v, handshake %t", name, strict, err, shaken)
			}
		}
	}
}

// The alerts are those of RFC 5246, "Error Alerts". A server that can sign by SHA-1 alone
// has none but handshake_failure for it.
func TestAHandshakeThatFailsNamesTheLikelyFault(t *testing.T) {
	t.Parallel()
	for alert, want := range map[byte][]string{
		40:  {"SHA-1", "update it"},      // handshake_failure
		71:  {"SHA-1", "update it"},      // insufficient_security
		70:  {"no TLS 1.2", "rds.tls12"}, // protocol_version
		120: {"DB_TLS=verify-full"},      // no_application_protocol
	} {
		for _, strict := range []bool{false, true} {
			there := newStandIn(t, &standIn{alert: alert, strict: strict}).server()
			there.TLS, there.Strict = &tls.Config{ServerName: "localhost"}, strict
			if _, err := there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true); err == nil || !contains(err.Error(), want...) || errors.Is(err, purge.ErrNotYet) {
				t.Errorf("alert %d, strict %t: %v", alert, strict, err)
			}
		}
	}
	for _, said := range []string{"certificate used with invalid signature algorithm", "server selected unsupported curve"} { // in the words of crypto/tls
		if fault := explainTLS("TLS Handshake failed: tls: " + said); !contains(fault, "SHA-1", "update it") {
			t.Errorf("%s: %q", said, fault)
		}
	}
}

// As rds.force_ssl does, and Force Encryption.
func TestAServerThatDemandsEncryptionIsToldAsThat(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := newStandIn(t, &standIn{tls: &tls.Config{Certificates: []tls.Certificate{certificate(t, nil, key)}}})
	_, err = s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true)
	if err == nil || !contains(err.Error(), "demands encryption", "DB_TLS=verify-full") || contains(err.Error(), "DB_HOST") || errors.Is(err, purge.ErrNotYet) {
		t.Error(err)
	}
}

// A server that forces strict encryption ends a connection that begins without, and one
// that does not know it ends one that begins with TLS.
func TestStrictEncryptionIsNamedWhereItIsTheFault(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			io.ReadFull(conn, make([]byte, 8)) //nolint:errcheck // it ends in any case
			conn.Close()
		}
	}()
	port := uint16(listener.Addr().(*net.TCPAddr).Port)
	for strict, want := range map[bool]string{false: "DB_TLS=strict", true: "DB_TLS=verify-full"} {
		there := (&standIn{listener: listener}).server()
		there.Port, there.Strict, there.TLS = port, strict, &tls.Config{ServerName: "localhost"}
		if _, err := there.Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, true); err == nil || !contains(err.Error(), want) || !errors.Is(err, purge.ErrNotYet) {
			t.Errorf("strict %t: %v", strict, err)
		}
	}
}

func TestLimitsAreSetOnceForLooksAndDeletes(t *testing.T) {
	t.Parallel()
	table := newScript(70, 10, quietly)
	s := newStandIn(t, &standIn{answer: table.answer})
	there := s.server()
	there.Longest, there.LockTimeout = 400*time.Millisecond, 2*time.Second
	r := run(t, there, "EdFi_Admin")
	if sent := s.statements(); r.Status != purge.Complete || r.DeletedRows != 70 || count(sent, "limits") != 1 {
		t.Errorf("%+v, sent %v", r, sent)
	}
}

func TestAPolicyThatComesUnderARunFails(t *testing.T) {
	t.Parallel()
	table := newScript(7, 1, quietly)
	var looks, opened atomic.Int32
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch {
		case kind == "oldest" && looks.Add(1) == 2: // the one that would prove that nothing is left
			return failure(changed, 16, "the table has a policy")
		case kind == "facts" && opened.Add(1) == 2:
			return examined(func(f *facts) { f.filtered = true })
		}
		return table.answer(kind)
	}})
	r := run(t, s.server(), "EdFi_Admin")
	if r.Status != purge.Failed || r.DeletedRows != 7 || len(r.Findings) == 0 || r.Findings[0].Code != "row-security" {
		t.Errorf("%+v", r)
	}
}

func TestWhoHoldsTheLocksIsToldToWhomMaySeeIt(t *testing.T) {
	t.Parallel()
	for may, want := range map[int]bool{1: true, 0: false} {
		table := newScript(7, 1, quietly)
		var looks atomic.Int32
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch kind {
			case "oldest":
				if looks.Add(1) == 1 {
					time.Sleep(1100 * time.Millisecond)
				}
			case "may see holders":
				return row(may)
			case "holders":
				return row(57, "reports on db1, whose last request began at 2026-11-24T03:00:00")
			}
			return table.answer(kind)
		}})
		r := run(t, s.server(), "EdFi_Admin")
		told := false
		for _, f := range r.Findings {
			told = told || f.Code == "lock-holder" && contains(f.Message, "session 57 of reports")
		}
		if r.Status != purge.Complete || told != want {
			t.Errorf("may %d: %+v", may, r)
		}
	}
}

func TestOnlyTablesWhoseZoneIsNotCertainGoByTheServersLocalClock(t *testing.T) {
	t.Parallel()
	local := time.Now().UTC().Add(-7 * time.Hour).Truncate(time.Second)
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		if kind == "clock" {
			return row(local)
		}
		return (&script{}).answer(kind)
	}})
	for _, table := range purge.Tables() {
		conn, err := s.server().Open(t.Context(), "EdFi_Admin", table, false)
		if err != nil {
			t.Fatal(err)
		}
		f := conn.Facts()
		conn.Close()
		if at := map[bool]time.Time{true: local, false: f.Now}[table.Local]; !f.Clock.Equal(at) {
			t.Errorf("%s goes by %s, not %s", table, f.Clock, at)
		}
	}
}

// Ranges of a key end where another key begins: there is none where it is shared by more
// rows than a batch has.
func TestMoreRowsOfOneKeyThanABatchHasAreABatchOfTheirOwn(t *testing.T) {
	t.Parallel()
	shared := 7
	at, ends := time.Now().UTC().Add(-time.Hour).Truncate(time.Second), 0
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch kind {
		case "facts":
			return examined(func(f *facts) { f.keyType = "int" })
		case "end": // all share one expiration; after ten rows of key 7 another one of it comes
			if ends++; ends == 1 {
				return row(at, at)
			}
			return row(shared)
		}
		return (&script{}).answer(kind)
	}})
	conn, err := s.server().Open(t.Context(), "EdFi_Admin", purge.ClientAccessTokens, false)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cut, rest, err := conn.Cut(t.Context(), window{from: at, to: time.Now()}, 10, 1)
	if err != nil || len(cut) != 1 || rest == nil || cut[0].Window.(window).single {
		t.Fatalf("the rows before the shared key: %+v, %+v, %v", cut, rest, err)
	}
	cut, rest, err = conn.Cut(t.Context(), rest, 10, 1)
	if err != nil || len(cut) != 1 || rest != nil || !cut[0].Window.(window).single || cut[0].Window.(window).lower.number != int64(shared) {
		t.Errorf("the rows of the shared key: %+v, %+v, %v", cut, rest, err)
	}
}

// Two sessions as sys.dm_exec_sessions has them; the one whose last request is longest ago
// comes first.
func TestWhoHoldsTheLocksIsNamedWhileARunWaitsAndHowToEndIt(t *testing.T) {
	t.Parallel()
	for may, want := range map[int]bool{1: true, 0: false} {
		table := newScript(7, 1, func(int64) []byte { return failure(1222, 16, "Lock request time out period exceeded.") })
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch kind {
			case "may see holders":
				return row(may)
			case "holders":
				return rows([]any{57, "reports on db1, whose last request began at 2026-11-24T03:00:00"}, []any{61, " on web2, whose last request began at 2026-11-24T03:20:00"})
			}
			return table.answer(kind)
		}})
		waited, r := runBriefly(t, s)
		stayed := fmt.Sprint(r.Findings)
		if r.Status != purge.Partial || !contains(waited, "rows are locked by") || !contains(stayed, "locked-rows") {
			t.Errorf("may %d: it waited for %q, %+v", may, waited, r)
		}
		if contains(waited, "rows are locked by session 57 of reports on db1") != want || contains(stayed, "held last by session 57 of reports", "To end that: KILL 57;") != want {
			t.Errorf("may %d: it waited for %q, %+v", may, waited, r)
		}
	}
}

// runBriefly purges for two seconds, and returns what it waited for meanwhile.
func runBriefly(t *testing.T, s *standIn) (waited string, r purge.DatabaseResult) {
	to, p := target(s.server(), "EdFi_Admin"), policy
	p.MaxDuration = 2 * time.Second
	var waits []string
	to.Waiting = func(_, why string) { waits = append(waits, why) } // one worker: one at a time
	r = purge.Run(t.Context(), to, p, func(purge.DatabaseResult) {}).Databases[0]
	return strings.Join(waits, "; "), r
}
