package relay

import (
	"syscall"
	"time"
)

// SleepUntil sleeps to the tenth of a millisecond. Go's own timers are waited for
// in whole ones, which would make a delay of 0.5 ms one of 1.
func SleepUntil(t time.Time) {
	for d := time.Until(t); d > 0; d = time.Until(t) {
		rest := syscall.NsecToTimespec(int64(d))
		syscall.Nanosleep(&rest, nil) //nolint:errcheck // a signal may end it early
	}
}
