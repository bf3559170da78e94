package purge

import "slices"

//go:generate go run edfi-token-purge/functions/internal/testing/findings ../../../docs/findings.md

// Finding is something that an operator should know or mend.
type Finding struct {
	Level   string `json:"level"` // error, warning or info
	Code    string `json:"code"`  // stable, for programs
	Message string `json:"message"`
}

// The levels of findings.
const (
	LevelError   = "error" // what a purge fails for
	LevelWarning = "warning"
	LevelInfo    = "info"
)

// Levels are those of findings, the worst first.
var Levels = []string{LevelError, LevelWarning, LevelInfo}

// bySeverity compares two findings: the worse one is less.
func bySeverity(a, b Finding) int {
	return slices.Index(Levels, a.Level) - slices.Index(Levels, b.Level)
}

// Kind is one finding that there can be. docs/findings.md lists all of them.
type Kind struct {
	Code  string
	Level string // that it has, unless At gives another
	Or    string // that it has elsewhere, if any
	Check bool   // only a check looks for it
	Mend  string // what it means and what to do, for docs/findings.md
}

// Found returns a finding of this kind, at its level.
func (k Kind) Found(message string) Finding { return k.At(k.Level, message) }

// At returns a finding of this kind at another level.
func (k Kind) At(level, message string) Finding { return Finding{level, k.Code, message} }

// Kinds are all that there are, in the order of docs/findings.md.
var Kinds []Kind

func kind(k Kind) Kind {
	Kinds = append(Kinds, k)
	return k
}

// What a run finds.
var (
	MissingExpirationIndex = kind(Kind{
		Code: "missing-expiration-index", Level: LevelWarning,
		Mend: "no index finds rows by their expiration, so a run reads the whole table: run the `CREATE INDEX` in the message",
	})
	RowSecurity = kind(Kind{
		Code: "row-security", Level: LevelError,
		Mend: "row-level security hides rows from the login, or may, so nothing is deleted: run one of the statements in the message",
	})
	PolicyUnseen = kind(Kind{
		Code: "policy-unseen", Level: LevelWarning,
		Mend: "SQL Server: there seems to be a row-level security policy, which the login may not see, so that nobody knows whether expired rows are hidden: run the `GRANT` in the message and then a check, or look as an administrator",
	})
	LockedRows = kind(Kind{
		Code: "locked-rows", Level: LevelWarning,
		Mend: "rows, or the table, stayed locked until the run ended, and the next run tries again: look for a long transaction; the message names the session that held locks last, where the login may see it",
	})
	ShortOfMemory = kind(Kind{
		Code: "short-of-memory", Level: LevelWarning,
		Mend: "SQL Server was short of memory, or of room for locks, until the run ended, and the next run tries again: the message has its own words; look at its limit of memory, and in the resource governor at that of its pool",
	})
	NoTime = kind(Kind{
		Code: "no-time", Level: LevelWarning,
		Mend: "less time than `STOP_BEFORE` was left when the run began, so it deleted nothing: raise the function's timeout, or lower `STOP_BEFORE`",
	})
	BatchSizeLowered = kind(Kind{
		Code: "batch-size-lowered", Level: LevelWarning,
		Mend: "with a batch of `BATCH_SIZE` rows SQL Server would lock the whole table, so the run used the size in the message: set `BATCH_SIZE` to that",
	})
	SecretUnread = kind(Kind{
		Code: "secret-unread", Level: LevelWarning,
		Mend: "Secrets Manager did not answer, so the run used the login that worked last, which may have been changed since: the message says why; mend the way to Secrets Manager",
	})
	MaxRowsReached = kind(Kind{
		Code: "max-rows", Level: LevelInfo,
		Mend: "a dry run found more expired rows than `MAX_ROWS` lets one run delete: raise `MAX_ROWS`, or let more than one run delete them",
	})
	NoSelectRight = kind(Kind{
		Code: "no-select-right", Level: LevelError, Or: LevelInfo,
		Mend: grantIt,
	})
	NoDeleteRight = kind(Kind{
		Code: "no-delete-right", Level: LevelError, Or: LevelInfo,
		Mend: grantIt,
	})
	NoTable = kind(Kind{
		Code: "no-table", Level: LevelError, Or: LevelInfo,
		Mend: notEdFi,
	})
	WrongTable = kind(Kind{
		Code: "wrong-table", Level: LevelError, Or: LevelInfo,
		Mend: notEdFi,
	})
	TwoTables = kind(Kind{
		Code: "two-tables", Level: LevelWarning,
		Mend: "PostgreSQL: two tables have the table's name, one in quotes and one in lower case, and only the one in lower case is purged: rename the one that is not in use, as in the message",
	})
	NoDatabase = kind(Kind{
		Code: "no-database", Level: LevelError, Or: LevelInfo,
		Mend: "there is no such database, or the login may not enter it: correct the name in `DATABASES`, or let the login in",
	})
	NoAccess = kind(Kind{
		Code: "no-access", Level: LevelError, Or: LevelInfo,
		Mend: "the login may not enter the database: let it in as the message says, or exclude the database in `DATABASES`",
	})
	DatabaseClosed = kind(Kind{
		Code: "database-closed", Level: LevelInfo,
		Mend: "the database is a template or offline, so the run skips it: nothing to do, or exclude it in `DATABASES`",
	})
	OtherDatabase = kind(Kind{
		Code: "other-database", Level: LevelError,
		Mend: "the connection opened another database than the run asked for, so it deleted nothing: look for a pooler or proxy in between that changes the name",
	})
	ReaderEndpoint = kind(Kind{
		Code: "reader-endpoint", Level: LevelError,
		Mend: "the server or the database is read-only: give the writer's endpoint as `DB_HOST` or in the secret",
	})
	ReadOnlyDatabase = kind(Kind{
		Code: "read-only-database", Level: LevelError,
		Mend: "SQL Server: the database is set read-only: run the `ALTER DATABASE` in the message, or exclude the database in `DATABASES`",
	})
	RefusedRows = kind(Kind{
		Code: "refused-rows", Level: LevelError,
		Mend: "a foreign key or a trigger refuses to let rows go, so they stay, and all others are deleted: run one of the statements in the message, which end the triggers, rules and foreign keys that the login may see; a check lists them",
	})
	SlowRows = kind(Kind{
		Code: "slow-rows", Level: LevelWarning,
		Mend: "rows take so long to delete that a batch has few, so the run ended before all were gone, and the next one goes on: a trigger, or a foreign key whose own table has no index for it; the message has the statements that end what acts on deletes, as far as the login may see it",
	})
	LockHolder = kind(Kind{
		Code: "lock-holder", Level: LevelInfo,
		Mend: "SQL Server: a look for expired rows waited for locks that the sessions in the message hold: end those that are forgotten",
	})
	CountUncertain = kind(Kind{
		Code: "count-uncertain", Level: LevelInfo,
		Mend: "the connection was lost while batches were on their way, and the server could not say what became of all of them, so that the number of deleted rows may be off by the number in the message: nothing to do, unless connections are lost again and again",
	})
	Throttled = kind(Kind{
		Code: "throttled", Level: LevelInfo,
		Mend: "others wrote to the server, so the run made way for them: nothing to do, unless the status stays `partial`",
	})
	OldSnapshot = kind(Kind{
		Code: "old-snapshot", Level: LevelWarning,
		Mend: "PostgreSQL: an old transaction, a replication slot or a prepared transaction keeps deleted rows from being cleared away, so that each run has to pass over them: the message names the oldest with the statement that ends it",
	})
	NoSlot = kind(Kind{
		Code: "no-connection-free", Level: LevelWarning,
		Mend: "the server, the database or the login had no connection to spare until the run ended: raise the limit in the message, or lower `PARALLEL_DATABASES` and `CONCURRENCY`",
	})
	TransactionPooler = kind(Kind{
		Code: "transaction-pooler", Level: LevelError,
		Mend: "PostgreSQL: a pooler in between gives each transaction another session, as PgBouncer does with `pool_mode` transaction or statement; a purge needs one to itself: give the server's own port, or a pool with `pool_mode = session`",
	})
	KeptRows = kind(Kind{
		Code: "kept-rows", Level: LevelError, Or: LevelWarning,
		Mend: "rows have expired, and a delete leaves them where they are: a trigger or a rule keeps them, puts them back, or puts their expiration off, which is the warning: the message has the statements that end those that the login may see, and a check lists them",
	})
	NoReplicaIdentity = kind(Kind{
		Code: "no-replica-identity", Level: LevelError,
		Mend: "PostgreSQL: a publication has the table's deletes, and the server refuses them for a table without a replica identity: run the `ALTER TABLE` in the message",
	})
	ReadOnly = kind(Kind{
		Code: "read-only", Level: LevelError,
		Mend: "PostgreSQL: `default_transaction_read_only` is on, so nothing can be deleted: the message says how to reset it, or exclude the database in `DATABASES`",
	})
	CountsUnproved = kind(Kind{
		Code: "counts-unproved", Level: LevelWarning, Or: LevelError,
		Mend: "PostgreSQL: `track_counts` is off, so that the server does not count what a delete came to; an error means that a trigger, a foreign key or a rule acts on deletes too, so nothing is deleted: the message says how to turn it on",
	})
	SessionSettings = kind(Kind{
		Code: "session-settings", Level: LevelWarning,
		Mend: "PostgreSQL: a setting of role, database or server is in the way that the login may not change for its session: run the statement in the message",
	})
	ClockSkew = kind(Kind{
		Code: "clock-skew", Level: LevelError,
		Mend: "the clocks of database and function are more than five minutes apart, so nothing is deleted: set the wrong one; the message has both",
	})
)

// What only a check finds.
var (
	Backlog = kind(Kind{
		Code: "backlog", Level: LevelWarning, Check: true,
		Mend: "rows that expired more than 6 hours ago are still there: invoke purges until the status is `complete`",
	})
	UnwatchedTable = kind(Kind{
		Code: "unwatched-table", Level: LevelInfo, Or: LevelWarning, Check: true,
		Mend: "a table that nobody cleans is there, and `TABLES` does not have it; a warning means that it has many rows: ask for it as [Tables](tables.md) says",
	})
	OtherCleaner = kind(Kind{
		Code: "other-cleaner", Level: LevelWarning, Check: true,
		Mend: "an enabled job of pgAgent, pg_cron or SQL Server Agent deletes from the table too: run the statements in the message, or stop it as [moving over](moving-over.md) says",
	})
	NoTLS = kind(Kind{
		Code: "no-tls", Level: LevelWarning, Check: true,
		Mend: "the connection is not encrypted: set `DB_TLS` to `verify-full`",
	})
	CertificateEnds = kind(Kind{
		Code: "certificate-ends", Level: LevelWarning, Check: true,
		Mend: "the server's certificate ends within a month: renew it; on RDS, choose a newer authority for the instance",
	})
	Version = kind(Kind{
		Code: "version", Level: LevelInfo, Or: LevelWarning, Check: true,
		Mend: "the server's version; a warning means that it is older than PostgreSQL 13 or SQL Server 2017, and nobody tried this purge with it: upgrade the server",
	})
	TimeZone = kind(Kind{
		Code: "time-zone", Level: LevelInfo, Or: LevelWarning, Check: true,
		Mend: "the time zone; a warning means that PostgreSQL's sessions are not in UTC: this purge does not mind, but stop any job that compares `expiration` with `now()`",
	})
	DeleteTrigger = kind(Kind{
		Code: "delete-trigger", Level: LevelWarning, Check: true,
		Mend: "a trigger, which is not Ed-Fi's, runs for each delete; it costs time and may keep rows: the statements in the message turn it off",
	})
	DeleteRule = kind(Kind{
		Code: "delete-rule", Level: LevelWarning, Check: true,
		Mend: "PostgreSQL: a rule, which is not Ed-Fi's, rewrites each delete, so that counts may be wrong: the statements in the message turn it off",
	})
	Referenced = kind(Kind{
		Code: "referenced", Level: LevelWarning, Check: true,
		Mend: "a foreign key, which is not Ed-Fi's, leads to the table and can refuse a delete: the statements in the message drop it",
	})
	DeleteBurden = kind(Kind{
		Code: "delete-burden", Level: LevelWarning, Check: true,
		Mend: "SQL Server: the table is temporal or a ledger, captured, tracked, replicated, a heap, or has a full-text or columnstore index or an indexed view, which Ed-Fi's has not, so that each delete does more: nothing to do, or mend what the message names",
	})
	OddKey = kind(Kind{
		Code: "odd-key", Level: LevelWarning, Check: true,
		Mend: "SQL Server: the key is not of Ed-Fi's type, or no index begins with it where none finds expirations, so that rows leave slowly: nothing to do, if they do leave; else create the index on expirations",
	})
	DefinitionsUnseen = kind(Kind{
		Code: "definitions-unseen", Level: LevelInfo, Check: true,
		Mend: "SQL Server: the login may not see triggers, foreign keys and policies: run the `GRANT` in the message, or check as an administrator",
	})
	SessionsUnseen = kind(Kind{
		Code: "sessions-unseen", Level: LevelInfo, Check: true,
		Mend: "SQL Server: the login may not see other sessions, so that `locked-rows` can't name who holds locks: run the `GRANT` in the message",
	})
	NotRehearsed = kind(Kind{
		Code: "not-rehearsed", Level: LevelWarning, Check: true,
		Mend: "SQL Server: a trigger on DELETE may end the transaction that it runs in, so that the check could not try a delete and undo it; whether a purge gets through shows in its own result: let the check see the trigger, or turn it off, as the message says",
	})
	RCSIOff = kind(Kind{
		Code: "rcsi-off", Level: LevelWarning, Check: true,
		Mend: "SQL Server: the API's reads wait for each batch: run the `ALTER DATABASE` in the message at a quiet time",
	})
	DeadRows = kind(Kind{
		Code: "dead-rows", Level: LevelWarning, Check: true,
		Mend: "PostgreSQL: autovacuum has not come after the deletes: `VACUUM (ANALYZE)` the table",
	})
	OtherCleanerUnseen = kind(Kind{
		Code: "other-cleaner-unseen", Level: LevelInfo, Check: true,
		Mend: "the login may not see all jobs: look for other cleaners as an administrator, as [moving over](moving-over.md) says",
	})
	Connected       = kind(Kind{Code: "connected", Level: LevelInfo, Check: true, Mend: asItIs})
	Clock           = kind(Kind{Code: "clock", Level: LevelInfo, Check: true, Mend: asItIs})
	TLS             = kind(Kind{Code: "tls", Level: LevelInfo, Check: true, Mend: asItIs})
	Rights          = kind(Kind{Code: "rights", Level: LevelInfo, Check: true, Mend: asItIs})
	ExpirationIndex = kind(Kind{Code: "expiration-index", Level: LevelInfo, Check: true, Mend: asItIs})
	RCSI            = kind(Kind{Code: "rcsi", Level: LevelInfo, Check: true, Mend: asItIs})
	Size            = kind(Kind{Code: "size", Level: LevelInfo, Check: true, Mend: asItIs})
	ExpiredRows     = kind(Kind{Code: "expired-rows", Level: LevelInfo, Check: true, Mend: asItIs})
	NoOtherCleaner  = kind(Kind{
		Code: "no-other-cleaner", Level: LevelInfo, Check: true,
		Mend: "no job that the login may see deletes from the table; where its product has a task of its own, which shows in no database, the message names that: look there, as [moving over](moving-over.md) says",
	})
)

// What several kinds say. They share a row of the table.
const (
	grantIt = "the login lacks a right: run the `GRANT` in the message, or `infra/*/role.sql`, in that database"
	notEdFi = "the database does not have Ed-Fi's table, or the login may not see it: exclude the database in `DATABASES` if it is no Ed-Fi admin database, else run `infra/*/role.sql` in it"
	asItIs  = "how things are; nothing to do"
)
