// Package purge deletes the expired rows of Ed-Fi's token tables: the domain,
// free of any driver, cloud or wire format.
//
// # A reader's tour
//
// One scheduled event, from Invoke to the metric line:
//
//  1. handler.Invoke (functions/purge-tokens) reads the event.
//  2. handler.run fetches the login and resolves the names of the databases.
//  3. [Run] serves several databases at a time, in random order.
//  4. visit.serve gives each table of a database a turn, which ends with a verdict.
//  5. turn.connect has an [Engine] open a [Conn] that holds the database's lock.
//  6. turn.work fixes the cut-off, once, by the database's clock.
//  7. turn.drain looks for expired rows and sweeps, until a look finds none.
//  8. turn.sweep starts a worker for each connection.
//  9. worker.work pulls batches from the backlog, which has Conn.Cut cut them.
//  10. Conn.Delete deletes a batch in one committed statement.
//  11. conclude judges what the turn came to.
//  12. handler.report writes the metric line.
//
// # What holds
//
// The cut-off is the database's clock less the grace period. It stays so until the
// run ends, whatever happens. Rows are counted after their commit, and the count
// survives every error: a [DatabaseResult] tells what happened, whatever else went
// wrong. Only a look that finds nothing proves that nothing is left.
//
// A batch that waits too long for a lock goes to the back of the backlog in smaller
// pieces, so that a locked row holds up its neighbours only. Time, the quota and
// cancellation are looked at between batches; within a batch the server gives up in
// time.
//
// # Who knows what
//
// The backlog knows what is still to be deleted, the sizer how many rows a batch
// has, the pacer when the next one may begin, the quota how many rows may still go.
// A connection is used by one goroutine at a time: the turn's own, then one worker.
//
// The adapters (packages postgres and sqlserver) are dialect and nothing else. The
// suite in purgetest says what an adapter must do.
//
// # Where what is
//
//	purge.go               the contract with the adapters, and its errors
//	table.go               what can be purged
//	selection.go           which databases
//	run.go, slots.go       all databases, and the connections that they share
//	visit.go               one database and its tables
//	turn.go, verdict.go    one table, and what came of it
//	connect.go             its connections, and how long to rest without one
//	look.go, locks.go      looks for expired rows, what the server says of them, and locks
//	drain.go, worker.go    the loop, and what a connection does in it
//	backlog.go, batch.go   what is still to be deleted
//	refused.go             rows that the database refuses to delete
//	acknowledge.go         batches of which it is not known whether they were committed
//	sizer.go, pacer.go     how large a batch is, and when it may begin
//	quota.go               how many rows may still go
//	check.go               what a check looks for
//	encryption.go          how a connection is secured, and what is wrong with a certificate
//	finding.go, result.go  what is told
//	context.go             time limits and panics
package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	// ConnectTimeout is how long a run waits, once for all databases, for a server that
	// takes connections and does not serve yet; 0 is not at all.
	ConnectTimeout time.Duration
}

// longest is how many times BatchTarget a statement that deletes may take.
const longest = 8

// Longest returns how long a statement that deletes may take; 0 is no bound.
func (p Policy) Longest() time.Duration { return longest * p.BatchTarget }

// Target is what one run works on.
type Target struct {
	Engine    Engine
	Tables    []Table // that are purged in each database that has them; nil is ClientAccessTokens
	Name      string  // the engine's name in results: postgres or sqlserver
	Server    string  // host:port, for results
	Databases []Database
	Findings  []Finding // made before the run, for each database
	Log       *slog.Logger
	// Deleted, where it is set, is told of each committed batch, by several
	// goroutines at a time.
	Deleted func(database string, rows int64)
	// Waiting, where it is set, is told what the run waits for in a database, and ""
	// when it goes on, by several goroutines at a time.
	Waiting func(database, why string)
}

// Engine opens connections to the databases of one server.
type Engine interface {
	// Open connects to the database and examines the table in it. With lock it also
	// takes the database for this run alone, until the Conn is closed or its
	// connection dies; the error is ErrAlreadyRunning when another run has it.
	// Without lock it must not need more than the right to read. An error says what
	// to do about it and holds no secret; it is NotPurgeable where the database is
	// at fault.
	Open(ctx context.Context, database string, table Table, lock bool) (Conn, error)
}

// Conn is a connection to one database. One goroutine uses it at a time. When ctx
// has a deadline, the server itself gives up shortly before it, and the error is
// ErrTimeout.
type Conn interface {
	// Switch turns the connection to another table, and examines that as Open does. With an
	// error the connection is for none, but may be turned again.
	Switch(ctx context.Context, table Table) error
	// Facts returns what Open learned, at no cost.
	Facts() Facts
	// Expired returns the window of all rows with after < expiration <= cutoff, at no
	// cost; a zero after is no limit.
	Expired(after, cutoff time.Time) Window
	// Oldest returns the expiration of the oldest row in w, and what is left of w
	// when all before that row is cut off: nil when w holds no row. The trail says
	// where a sweep has deleted before.
	Oldest(ctx context.Context, w Window, trail Trail) (time.Time, Window, error)
	// Count returns how many rows w holds.
	Count(ctx context.Context, w Window) (int64, error)
	// Cut cuts at most so many batches, of at most size rows each, off the front of
	// w. rest is what follows them, nil at the end. A batch may turn out to be
	// empty.
	Cut(ctx context.Context, w Window, size, batches int) (cut []Batch, rest Window, err error)
	// Delete deletes the rows of b in one statement that is committed by itself. With
	// any error nothing was deleted, but with ErrLost, where nobody knows whether the
	// server committed: then Rows is how many it said would go, below 0 where it did not
	// come to that. With ErrUncommitted beside it the server did not commit.
	Delete(ctx context.Context, b Batch) (Deleted, error)
	// Check returns what an operator should know of the database, and as errors
	// what a purge would fail for. Findings that others need more rights for are
	// left out. The error is NotPurgeable, beside the findings, where Open with lock
	// would return that.
	Check(ctx context.Context) ([]Finding, error)
	// Close ends the connection and with it the lock.
	Close()
}

// Pipeliner is a Conn that can send a batch to the server before it has the answer
// to the one ahead of it, so that a slow link does not slow a purge.
type Pipeliner interface {
	// DeleteAll deletes first, and each batch that next returns, as Delete does, and calls
	// done for each, in the same order. An error of one says nothing of the next. It
	// returns when none is under way and next returns false.
	DeleteAll(ctx context.Context, first Batch, next func() (Batch, bool), done func(Deleted, error))
}

// Witness is a Conn whose server can tell later whether a batch was committed.
type Witness interface {
	// Committed tells whether the transaction was committed. The error is ErrLocked while
	// it is still running.
	Committed(ctx context.Context, transaction uint64) (bool, error)
}

// Rehearser is a Conn that can try a delete and undo it.
type Rehearser interface {
	// Rehearse deletes the rows of b as Delete does, and undoes it. It returns how many
	// rows b has, and how many of them went. Where a delete might not be undone it
	// tries none and returns errors.ErrUnsupported, with the reason.
	Rehearse(ctx context.Context, b Batch) (rows, gone int64, err error)
}

// LookExplainer is a Conn that can say why a look for expired rows took long although an
// index finds them.
type LookExplainer interface {
	// WhySlow returns what made the look take long, as far as the login may see it:
	// locks, or what holds up the clearing away of deleted rows.
	WhySlow(ctx context.Context) ([]Finding, error)
}

// LockTeller is a Conn that can say who holds locks on the table.
type LockTeller interface {
	// LockHolder returns who seems to have held longest a lock that a delete waits for,
	// as far as the login may see it.
	LockHolder(ctx context.Context) (Holder, error)
}

// Holder is who holds locks on a table.
type Holder struct {
	Name string // such as "session 4711 of psql"; "" is nobody that the login may see
	Mend string // the statement that ends it, where there is one
}

// DeleteExplainer is a Conn that can say what may keep rows from being deleted.
type DeleteExplainer interface {
	// WhatActs returns the statements that end what acts on deletes, such as triggers,
	// as far as the login may see it; "" is nothing.
	WhatActs(ctx context.Context) (statements string, err error)
}

// Surveyor is a Conn that can tell how large another table of the database is.
type Surveyor interface {
	// Survey returns about how many rows the table has, and the time in its oldest one;
	// nil where the login may not see it, or there is none. there is false where there is
	// no such table. With an error rows and there still count.
	Survey(ctx context.Context, table Table) (rows int64, oldest *time.Time, there bool, err error)
}

// WriteCounter is a Conn whose server tells how much is written to it.
type WriteCounter interface {
	// Writes returns how many writes the server, or the run, has counted so far, in any
	// database; 0 where it does not tell this login. Deleted says how many of them were
	// a batch's own.
	Writes(ctx context.Context) (int64, error)
}

// Sharer is a Conn that can share its look with other connections to the same table,
// which is quicker. None of them is used by anybody else meanwhile.
type Sharer interface {
	// OldestWith is Oldest, with the help of others.
	OldestWith(ctx context.Context, others []Conn, w Window, trail Trail) (oldest time.Time, found Window, err error)
}

// SlotCounter is a Conn whose server tells how many connections it still has for the
// login.
type SlotCounter interface {
	// FreeSlots returns how many more connections to this database the server would
	// let the login have at the moment: the least that the limits of server, database
	// and login leave. What is reserved for others counts as taken.
	FreeSlots(ctx context.Context) (int, error)
}

// Facts is what an adapter learned about a table while opening it.
type Facts struct {
	Now      time.Time // the database's clock, UTC
	Clock    time.Time // the one that the table's rows expire by
	Local    bool      // the zone of what the column holds is not certain
	Indexed  bool      // an index finds the oldest row; else a look reads the whole table
	Findings []Finding
	// Writes is what WriteCounter counted as the connection was opened, at Counted; 0 is
	// not known.
	Writes  int64
	Counted time.Time
}

// Window is a part of a table, in the adapter's own terms. It is a value: a
// Window can be kept, dropped or used again.
type Window any

// Batch is a Window that one statement may delete.
type Batch struct {
	Window Window
	Rows   int64 // exactly, when it was cut; 0 where that is not known
	// Most is how many rows the statement may delete. Where it finds more, as rows
	// arrived after the cut, it deletes none and the error is ErrOverfull. 0 is no
	// limit.
	Most int64
	// Patient gives the statement all the time that there is, and not only the few
	// times its target that any other may take.
	Patient bool
}

// Deleted is what a batch did.
type Deleted struct {
	Rows int64         // that are gone, whatever a trigger did beside
	More bool          // its window may have more, as the batch was not cut by what it holds
	Stay int64         // beside ErrRefused: so many were refused, and all others are gone; 0 is not known
	Took time.Duration // by the server's clock, without the link; 0 where it does not tell
	// Writes is how many of those that WriteCounter counts were the batch's own; below
	// 0 where that is not known.
	Writes int64
	// Count is what WriteCounter counted as the batch ended; 0 is not known.
	Count int64
	// Transaction is what a Witness knows the batch by, beside ErrLost too; 0 where that
	// is not known.
	Transaction uint64
}

// Trail is where sweeps have deleted so far. What they leave behind until VACUUM
// comes, a look has to pass over.
type Trail struct {
	Rows        int64    // cut so far
	Checkpoints []Window // what was left to cut after every checkpointRows or so
}

// Errors that an adapter tells apart for the loop; wrapped, for errors.Is.
var (
	ErrAlreadyRunning = errors.New("another run is purging this database")
	ErrLocked         = errors.New("rows are locked by another session")             // a later try may succeed
	ErrBusy           = Also(errors.New("the server is short of memory"), ErrLocked) // the same, though nobody holds a lock
	ErrOverfull       = errors.New("the batch holds more rows than it may delete")
	ErrRefused        = errors.New("the database refuses to delete a row") // a foreign key, a trigger
	ErrChanged        = errors.New("the table is not any more what it was when the run examined it")
	ErrTimeout        = errors.New("the statement ran out of time")
	ErrLogin          = errors.New("the server refused the login")
	ErrLost           = errors.New("no connection to the server")                          // none any more, or none yet
	ErrUnreached      = fmt.Errorf("%w", ErrLost)                                          // which could not even be reached
	ErrNotYet         = Also(errors.New("the server does not serve yet"), ErrLost)         // it starts, wakes or fails over: a later try may succeed
	ErrNoSlot         = Also(errors.New("the server has no connection to spare"), ErrLost) // now; for server, database or login
	ErrUncommitted    = errors.New("nothing was committed")                                // beside ErrLost: it was lost before it could commit the batch
)

// Also returns err as an error that is other too, for errors.Is: whoever knows no better
// does as with that.
func Also(err, other error) error { return also{err, other} }

type also struct {
	error
	other error
}

func (a also) Unwrap() error        { return a.error }
func (a also) Is(target error) bool { return target == a.other }

// Uncommitted marks a lost connection as one that was lost before the server could
// commit anything. Any other error stays as it is.
func Uncommitted(err error) error {
	if errors.Is(err, ErrLost) {
		return Also(err, ErrUncommitted)
	}
	return err
}

// NoAnswer is the error for a server that did not answer in time, and may not even
// have been reached.
func NoAnswer(reached bool) error {
	lost := ErrLost
	if !reached {
		lost = ErrUnreached
	}
	return fmt.Errorf("%w: no answer in time: check host and port, security groups, and that the function runs in the database's VPC", lost)
}

// NotPurgeable is the error for a database that is not, or not for this login, an
// Ed-Fi admin database. Where only a pattern matched it, that is no failure.
type NotPurgeable struct {
	Kind    Kind // of the finding
	Message string
	Server  bool // the whole server can't be purged: a failure, whatever matched
}

// Error returns the message.
func (n NotPurgeable) Error() string { return n.Message }
