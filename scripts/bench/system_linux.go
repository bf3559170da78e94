package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
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

// stepAside leaves a process what others leave of the processors.
func stepAside(pid int) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, thread := range threads {
		id, notOne := strconv.Atoi(thread.Name())
		err = errors.Join(err, notOne, syscall.Setpriority(syscall.PRIO_PROCESS, id, 19))
	}
	return err
}
