//go:build !linux

package main

import (
	"syscall"
	"time"
)

func nap(until time.Time) { time.Sleep(time.Until(until)) }

func stepAside(pid int) error { return syscall.Setpriority(syscall.PRIO_PROCESS, pid, 19) }
