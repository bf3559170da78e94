package purge

import "errors"

// ending is what a turn came to.
type ending struct {
	err       error
	action    Action
	overrun   StopReason // what it means that the time is over
	optional  bool       // no fault where the table is not there, and it was not before
	opened    bool       // the database was reached and its table examined
	wasOpen   bool       // or the database was, in any turn of its tables
	reached   bool       // the server was, in this run
	timeout   bool       // the time is over
	shareOver bool       // only that of its turn
	canceled  bool       // whoever called wants the run to end
	stale     bool       // whoever holds the lock may be a session of this run that was lost
}

// verdict is what follows from an ending.
type verdict struct {
	status    Status
	reason    StopReason
	err       error // of a failure, or why it is skipped
	again     bool  // the table wants another turn
	reconnect bool  // it gets one, after a while, as long as there is patience
	inspect   bool  // another run holds it; what that leaves is to be seen
}

// mayPass tells whether a later try to connect may succeed: the connection was lost, or
// the server starts, wakes, fails over or has none to spare.
func (e ending) mayPass() bool {
	unfit, notPurgeable := errors.AsType[NotPurgeable](e.err)
	switch {
	case errors.Is(e.err, ErrNotYet), errors.Is(e.err, ErrNoSlot):
		return true
	case notPurgeable: // after a fail-over the old writer is a reader
		return unfit.Kind.Code == ReaderEndpoint.Code
	case errors.Is(e.err, ErrChanged):
		return true
	default:
		return (e.wasOpen || e.reached) && errors.Is(e.err, ErrLost)
	}
}

// nothingToPurge tells whether the table is not there and need not be.
func (e ending) nothingToPurge() bool {
	unfit, ok := errors.AsType[NotPurgeable](e.err)
	return ok && unfit.Kind.Code == NoTable.Code && e.optional
}

var doneReason = map[Action]StopReason{Purge: Drained, DryRun: DryRunDone, Check: CheckDone}

// conclude judges how a turn ended. Nothing else does.
func conclude(e ending) verdict {
	switch {
	case e.err == nil:
		return verdict{status: Complete, reason: doneReason[e.action]}
	case e.nothingToPurge():
		return verdict{status: Skipped, reason: SkippedReason, err: e.err}
	case errors.Is(e.err, ErrAlreadyRunning):
		return verdict{status: Partial, reason: AlreadyRunning, inspect: true, err: e.err, reconnect: e.stale}
	case errors.Is(e.err, errMaxRows):
		return verdict{status: Partial, reason: MaxRows}
	case e.canceled:
		return verdict{status: Partial, reason: Canceled}
	case e.timeout:
		return verdict{status: Partial, reason: e.overrun, again: e.shareOver}
	case errors.Is(e.err, ErrNoSlot), errors.Is(e.err, ErrLocked): // as it was opened: it waits for its turn
		return verdict{status: Partial, reason: e.overrun, err: e.err, reconnect: true}
	default:
		return verdict{status: Failed, reason: Errored, err: e.err, again: e.shareOver, reconnect: e.mayPass()}
	}
}
