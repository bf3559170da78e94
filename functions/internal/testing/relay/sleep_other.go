//go:build !linux

package relay

import "time"

// SleepUntil sleeps as exactly as Go's own timers do.
func SleepUntil(t time.Time) { time.Sleep(time.Until(t)) }
