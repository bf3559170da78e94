package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// enableColours has the console take colours, which it does not do by itself, and
// returns false for one that can't.
func enableColours(f *os.File) bool {
	console, mode := windows.Handle(f.Fd()), uint32(0)
	return windows.GetConsoleMode(console, &mode) == nil &&
		windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
