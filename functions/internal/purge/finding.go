package purge

import "slices"

//go:generate go run edfi-token-purge/functions/internal/testing/findings ../../../README.md

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

// Kind is one finding that there can be. The README's list is made of all of them.
type Kind struct {
	Code  string
	Level string // that it has, unless At gives another
	Or    string // that it has elsewhere, if any
	Check bool   // only a check looks for it
	Mend  string // what it means and what to do, for the README
}

// Found returns a finding of this kind, at its level.
func (k Kind) Found(message string) Finding { return k.At(k.Level, message) }

// At returns a finding of this kind at another level.
func (k Kind) At(level, message string) Finding { return Finding{level, k.Code, message} }

// Kinds are all that there are, in the README's order.
var Kinds []Kind

func kind(k Kind) Kind {
	Kinds = append(Kinds, k)
	return k
}

// What a run finds.
var (
	MissingExpirationIndex = kind(Kind{Code: "missing-expiration-index", Level: LevelWarning,
		Mend: "run the `CREATE INDEX` in its message"})
	UnboundedBatch = kind(Kind{Code: "unbounded-batch", Level: LevelWarning,
		Mend: "more rows than a batch share one expiration and went in one statement: `GRANT SELECT` on the table"})
	RowSecurity = kind(Kind{Code: "row-security", Level: LevelWarning,
		Mend: "PostgreSQL: row-level security applies to the login; expired rows that it hides stay: run one of the statements in its message"})
	LockedRows = kind(Kind{Code: "locked-rows", Level: LevelWarning,
		Mend: "rows, or the table, stayed locked until the run ended: look for a long transaction"})
	NoTime = kind(Kind{Code: "no-time", Level: LevelWarning,
		Mend: "raise the function's timeout, or lower `STOP_BEFORE`"})
	BatchSizeLowered = kind(Kind{Code: "batch-size-lowered", Level: LevelWarning,
		Mend: "`BATCH_SIZE` is above what SQL Server can bear in a statement; the lower size in the message holds"})
	MaxRowsReached = kind(Kind{Code: "max-rows", Level: LevelInfo,
		Mend: "in a dry run: more rows have expired than one run may delete"})
	NoSelectRight = kind(Kind{Code: "no-select-right", Level: LevelError, Or: LevelInfo,
		Mend: "run the `GRANT` in its message, or `infra/*/role.sql`, in that database"})
	NoDeleteRight = kind(Kind{Code: "no-delete-right", Level: LevelError, Or: LevelInfo,
		Mend: "the same"})
	NoTable = kind(Kind{Code: "no-table", Level: LevelError, Or: LevelInfo,
		Mend: "not an admin database of Ed-Fi's: exclude it in `DATABASES`"})
	WrongTable = kind(Kind{Code: "wrong-table", Level: LevelError, Or: LevelInfo,
		Mend: "the same"})
	NoDatabase = kind(Kind{Code: "no-database", Level: LevelError, Or: LevelInfo,
		Mend: "a name in `DATABASES` is misspelt, or the database was dropped meanwhile"})
	NoAccess = kind(Kind{Code: "no-access", Level: LevelError, Or: LevelInfo,
		Mend: "the login may not enter the database: let it in, or exclude it in `DATABASES`"})
	DatabaseClosed = kind(Kind{Code: "database-closed", Level: LevelInfo,
		Mend: "a template, or offline: nothing to do, or exclude it in `DATABASES`"})
	OtherDatabase = kind(Kind{Code: "other-database", Level: LevelError,
		Mend: "the connection opened another database than was asked for; nothing was deleted: look at what stands in between, such as a pooler"})
	ReaderEndpoint = kind(Kind{Code: "reader-endpoint", Level: LevelError,
		Mend: "give the writer's endpoint as `DB_HOST` or in the secret"})
	ClockSkew = kind(Kind{Code: "clock-skew", Level: LevelError,
		Mend: "set the clock that is wrong; the message has both"})
)

// What only a check finds.
var (
	Backlog = kind(Kind{Code: "backlog", Level: LevelWarning, Check: true,
		Mend: "rows expired more than 6 hours ago: have a purge made until its status is `complete`"})
	OtherCleaner = kind(Kind{Code: "other-cleaner", Level: LevelWarning, Check: true,
		Mend: "an enabled job of pgAgent, pg_cron or SQL Server Agent deletes tokens too: [moving over](#moving-over)"})
	NoTLS = kind(Kind{Code: "no-tls", Level: LevelWarning, Check: true,
		Mend: "set `DB_TLS` to `verify-full`"})
	CertificateEnds = kind(Kind{Code: "certificate-ends", Level: LevelWarning, Check: true,
		Mend: "have the server's certificate renewed within a month"})
	Version = kind(Kind{Code: "version", Level: LevelInfo, Or: LevelWarning, Check: true,
		Mend: "older than PostgreSQL 13 or SQL Server 2017 is a warning"})
	TimeZone = kind(Kind{Code: "time-zone", Level: LevelInfo, Or: LevelWarning, Check: true,
		Mend: "PostgreSQL sessions that are not in UTC: no harm to this purge, but to a job that compares with `now()`"})
	DeleteTrigger = kind(Kind{Code: "delete-trigger", Level: LevelWarning, Check: true,
		Mend: "none is Ed-Fi's; it costs time, or keeps rows. The statements in the message end it"})
	DeleteRule = kind(Kind{Code: "delete-rule", Level: LevelWarning, Check: true,
		Mend: "none is Ed-Fi's; it falsifies counts. The statements in the message end it"})
	Referenced = kind(Kind{Code: "referenced", Level: LevelWarning, Check: true,
		Mend: "a foreign key to the table, of which Ed-Fi has none, can refuse a delete. The statements in the message end it"})
	RCSIOff = kind(Kind{Code: "rcsi-off", Level: LevelWarning, Check: true,
		Mend: "SQL Server: the API's reads wait for each batch: run the `ALTER DATABASE` in the message"})
	DeadRows = kind(Kind{Code: "dead-rows", Level: LevelWarning, Check: true,
		Mend: "PostgreSQL: `VACUUM (ANALYZE)` the table"})
	OtherCleanerUnseen = kind(Kind{Code: "other-cleaner-unseen", Level: LevelInfo, Check: true,
		Mend: "the login may not see all jobs: look as an administrator, [moving over](#moving-over)"})
	Connected       = kind(Kind{Code: "connected", Level: LevelInfo, Check: true, Mend: asItIs})
	Clock           = kind(Kind{Code: "clock", Level: LevelInfo, Check: true, Mend: asItIs})
	TLS             = kind(Kind{Code: "tls", Level: LevelInfo, Check: true, Mend: asItIs})
	Rights          = kind(Kind{Code: "rights", Level: LevelInfo, Check: true, Mend: asItIs})
	ExpirationIndex = kind(Kind{Code: "expiration-index", Level: LevelInfo, Check: true, Mend: asItIs})
	RCSI            = kind(Kind{Code: "rcsi", Level: LevelInfo, Check: true, Mend: asItIs})
	Size            = kind(Kind{Code: "size", Level: LevelInfo, Check: true, Mend: asItIs})
	ExpiredRows     = kind(Kind{Code: "expired-rows", Level: LevelInfo, Check: true, Mend: asItIs})
	NoOtherCleaner  = kind(Kind{Code: "no-other-cleaner", Level: LevelInfo, Check: true, Mend: asItIs})
)

const asItIs = "how things are"
