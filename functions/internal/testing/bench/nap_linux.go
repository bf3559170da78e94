package main

import (
	"syscall"
	"time"
)

// nap sleeps to the tenth of a millisecond. Go's own timers are waited for in
// whole ones, which would make a slow link of 1 ms one of 2.
func nap(until time.Time) {
	for d := time.Until(until); d > 0; d = time.Until(until) {
		rest := syscall.NsecToTimespec(int64(d))
		syscall.Nanosleep(&rest, nil) //nolint:errcheck // a signal may end it early
	}
}
