package purge

import (
	"errors"
	"fmt"
	"testing"
)

func TestEachEndingOfATurnHasOneVerdict(t *testing.T) {
	broken := errors.New("broken")
	noTable := NotPurgeable{Kind: NoTable, Message: "there is none"}
	reader := NotPurgeable{Kind: ReaderEndpoint, Message: "take the writer's", Server: true}
	lost := fmt.Errorf("delete: %w", ErrLost)
	slow := fmt.Errorf("delete: %w", ErrTimeout)
	noRight := NotPurgeable{Kind: NoDeleteRight, Message: "grant it"}
	passing := func(err error) verdict {
		return verdict{status: Failed, reason: Errored, err: err, reconnect: true}
	}
	failed := func(err error) verdict { return verdict{status: Failed, reason: Errored, err: err} }
	for name, c := range map[string]struct {
		ending
		want verdict
	}{
		"done":                          {ending{}, verdict{status: Complete, reason: Drained}},
		"done by a check":               {ending{action: Check}, verdict{status: Complete, reason: CheckDone}},
		"an error":                      {ending{err: broken, opened: true, wasOpen: true}, failed(broken)},
		"no table, by a pattern":        {ending{err: noTable, optional: true}, verdict{status: Skipped, reason: SkippedReason, err: noTable}},
		"no table, by name":             {ending{err: noTable}, failed(noTable)},
		"no table, but it was open":     {ending{err: noTable, wasOpen: true}, failed(noTable)},
		"no rights, by a pattern":       {ending{err: noRight, optional: true}, failed(noRight)},
		"a reader":                      {ending{err: reader, optional: true}, passing(reader)},
		"a server that starts":          {ending{err: ErrNotYet}, passing(ErrNotYet)},
		"a table that changed":          {ending{err: ErrChanged, opened: true, wasOpen: true}, passing(ErrChanged)},
		"no connection free":            {ending{err: ErrNoSlot, overrun: Deadline}, verdict{status: Partial, reason: Deadline, err: ErrNoSlot, reconnect: true}},
		"locked as it is opened":        {ending{err: ErrLocked, overrun: Deadline}, verdict{status: Partial, reason: Deadline, err: ErrLocked, reconnect: true}},
		"memory is short as it is":      {ending{err: ErrBusy, overrun: Deadline}, verdict{status: Partial, reason: Deadline, err: ErrBusy, reconnect: true}},
		"another run":                   {ending{err: ErrAlreadyRunning}, verdict{status: Partial, reason: AlreadyRunning, err: ErrAlreadyRunning, inspect: true}},
		"a session of its own":          {ending{err: ErrAlreadyRunning, stale: true}, verdict{status: Partial, reason: AlreadyRunning, err: ErrAlreadyRunning, inspect: true, reconnect: true}},
		"the cap":                       {ending{err: errMaxRows, opened: true}, verdict{status: Partial, reason: MaxRows}},
		"canceled":                      {ending{err: broken, canceled: true}, verdict{status: Partial, reason: Canceled}},
		"the cap, and canceled":         {ending{err: errMaxRows, canceled: true}, verdict{status: Partial, reason: MaxRows}},
		"the deadline":                  {ending{err: slow, timeout: true, overrun: Deadline}, verdict{status: Partial, reason: Deadline}},
		"the longest duration":          {ending{err: slow, timeout: true, overrun: MaxDuration}, verdict{status: Partial, reason: MaxDuration}},
		"its share":                     {ending{err: slow, timeout: true, overrun: Deadline, shareOver: true}, verdict{status: Partial, reason: Deadline, again: true}},
		"a lost connection":             {ending{err: lost, opened: true, wasOpen: true}, verdict{status: Failed, reason: Errored, err: lost, reconnect: true}},
		"a server that was there":       {ending{err: lost, reached: true}, verdict{status: Failed, reason: Errored, err: lost, reconnect: true}},
		"a server that was never there": {ending{err: lost}, failed(lost)},
		"silence for its share":         {ending{err: lost, shareOver: true}, verdict{status: Failed, reason: Errored, err: lost, again: true}},
	} {
		if c.action == "" {
			c.action = Purge
		}
		if got := conclude(c.ending); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
