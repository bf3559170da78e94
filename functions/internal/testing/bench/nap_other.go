//go:build !linux

package main

import "time"

func nap(until time.Time) { time.Sleep(time.Until(until)) }
