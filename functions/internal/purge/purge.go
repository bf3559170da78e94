// Package purge deletes the expired rows of Ed-Fi's token tables: the domain,
// free of any driver, cloud or wire format. It imports the standard library
// alone.
//
// # How it works
//
// [Run] serves several databases at a time, each through a [Table] that an
// [Engine] opens. For one database it reads the database's clock once; that
// instant less the grace period is the limit, and stays so until the run ends.
// Rows that expired at or before the limit leave in batches, each of them one
// committed statement:
//
//	Oldest -> nothing there: drained
//	       -> sweep: Next cuts a batch off the front, Delete commits it, and so on
//	       -> Oldest again: only that look proves that nothing is left
//
// A large backlog gets more connections: some delete, one cuts batches ahead. The
// size of a batch follows the time that batches take, and so many of them go to the
// server at once as take the time aimed at, so that a slow link does not matter.
// While others write to the server, batches are small and there are rests between
// them, long ones at first.
//
// A batch that waits too long for a lock goes to the back of the queue, cut
// smaller, so that a locked row holds up its neighbours only. Time, the cap on
// rows and cancellation are looked at between batches; within a batch the
// adapter has the server give up in time.
//
// What was deleted is counted after its commit and survives every error:
// a [DatabaseResult] tells what happened, whatever else went wrong.
//
// The adapters (packages postgres and sqlserver) are dialect and nothing else.
// The suite in purgetest says what an adapter must do.
package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// Action is what a run does.
type Action string

// The actions. Only Purge deletes.
const (
	Purge  Action = "purge"
	DryRun Action = "dry-run" // counts what a purge would delete
	Check  Action = "check"   // connects and examines
)

// Policy says what a run may delete and how gently. The zero value of a field
// is the neutral one unless its comment says otherwise.
type Policy struct {
	Action      Action        // required
	Grace       time.Duration // how long past its expiration a row is kept
	BatchSize   int           // most rows one statement deletes; required, at least 1
	Pause       time.Duration // rest between batches
	MaxRows     int64         // most rows the run deletes, all databases together; 0 is no cap
	MaxDuration time.Duration // longest run; 0 is until the deadline
	StopBefore  time.Duration // how long before the context's deadline the run stops
	BatchTarget time.Duration // time that a batch aims at, by its size below BatchSize; 0 is BatchSize always
	Concurrency int           // connections that delete at once in one database; below 1 counts as 1
	Parallel    int           // databases served at once; below 1 counts as 1
}

// Engine opens the token table of one database.
type Engine interface {
	// Open connects to the database. With claim it also takes the database for
	// this run alone, until the Table is closed or its connection dies, and
	// answers ErrAlreadyRunning when another run has it. Without claim it must
	// not need more than the right to read. An error says what to do about it
	// and holds no secret.
	Open(ctx context.Context, database string, claim bool) (Table, error)
}

// Table is the token table of one database, on one connection, for one call at a
// time. When ctx has a deadline, the server itself gives up shortly before it, and
// the error is ErrTimeout.
type Table interface {
	// Facts answers what Open learned, at no cost.
	Facts() Facts
	// Expired answers the range of all rows with Expiration <= limit, at no cost.
	Expired(limit time.Time) Range
	// Oldest answers the expiration of the oldest row in r, and what is left
	// of r when all before that row is cut off: nil when r holds no row.
	Oldest(ctx context.Context, r Range) (time.Time, Range, error)
	// Count answers how many rows r holds.
	Count(ctx context.Context, r Range) (int64, error)
	// Next cuts a batch of at most n rows off the front of r. rest is what
	// follows it, nil at the end. A batch may turn out to be empty.
	Next(ctx context.Context, r Range, n int) (batch Batch, rest Range, err error)
	// Delete deletes the rows of each of batches, in their order, each in one
	// statement that is committed by itself, and calls answer for each, in the same
	// order: how many rows went, or ErrLocked when others hold a row, so that
	// nothing was deleted and a later try may succeed. It may send some before it
	// has the answer to those ahead of them; an error of one says nothing of the
	// next. With ErrLost nobody knows whether the server committed, and rows is how
	// many went if it did, 0 where that is not known either.
	Delete(ctx context.Context, batches []Range, answer func(rows int64, err error))
	// Writes answers how many transactions have written to the server so far, in
	// any database, the caller's own among them; 0 where the server does not tell.
	Writes(ctx context.Context) (int64, error)
	// Check answers what an operator should know of the database, and as faults
	// what a purge would fail for. Findings that others need more rights for are
	// left out. The error is Unfit, beside the findings, where Open with claim would
	// answer that.
	Check(ctx context.Context) ([]Finding, error)
	// Close ends the connection and with it the claim.
	Close()
}

// Facts is what an adapter learned about a table while opening it.
type Facts struct {
	Now      time.Time // the database's clock, UTC
	Findings []Finding
}

// Range is a part of a table, in the adapter's own terms. It is a value: a
// Range can be kept, dropped or used again.
type Range any

// Batch is a Range that one statement may delete.
type Batch struct {
	Rows Range
	// Unbounded marks rows that cannot be told apart with the rights at hand,
	// so that they go together or not at all, however many they are.
	Unbounded bool
}

// Errors that an adapter tells apart for the loop; wrapped, for errors.Is.
var (
	ErrAlreadyRunning = errors.New("another run is purging this database")
	ErrLocked         = errors.New("rows are locked by another session")
	ErrTimeout        = errors.New("the statement ran out of time")
	ErrLogin          = errors.New("the server refused the login")
	ErrLost           = errors.New("no connection to the server") // none any more, or none yet
	ErrUnreached      = fmt.Errorf("%w", ErrLost)                 // which could not even be reached
)

// NoAnswer is the error for a server that did not answer in time, and may not even
// have been reached.
func NoAnswer(reached bool) error {
	lost := ErrLost
	if !reached {
		lost = ErrUnreached
	}
	return fmt.Errorf("%w: no answer in time: check host and port, security groups, and that the function runs in the database's VPC", lost)
}

// Unfit is the error for a database that is not, or not for this login, an Ed-Fi
// admin database. Where only a pattern matched it, that is no failure.
type Unfit struct {
	Code    string // of the finding
	Message string
	Server  bool // it is the whole server that is unfit: a failure, whatever matched
}

// Error answers the message.
func (u Unfit) Error() string { return u.Message }

// Finding is something that an operator should know or mend. The worst stand first.
type Finding struct {
	Level   string `json:"level"` // error, warning or info
	Code    string `json:"code"`  // stable, for programs
	Message string `json:"message"`
}

const levelError = "error"

// Levels are those of findings, the worst first.
var Levels = []string{levelError, "warning", "info"}

// bySeverity compares two findings: the worse one is less.
func bySeverity(a, b Finding) int {
	return slices.Index(Levels, a.Level) - slices.Index(Levels, b.Level)
}

// Info makes a finding of level info.
func Info(code, message string) Finding { return Finding{"info", code, message} }

// Warning makes a finding of level warning.
func Warning(code, message string) Finding { return Finding{"warning", code, message} }

// Fault makes a finding of level error: what a purge would fail for.
func Fault(code, message string) Finding { return Finding{levelError, code, message} }

// Target is what one run works on.
type Target struct {
	Engine    Engine
	Name      string // the engine's name in results: postgres or sqlserver
	Server    string // host:port, for results
	Databases []Database
	Findings  []Finding // made before the run, for each database
	Log       *slog.Logger
}
