package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// screen writes to standard output. On a terminal, progress is one line that
// is written over; elsewhere it is lines like all others, only fewer.
type screen struct {
	terminal bool
	shown    bool // a progress line stands there
}

func newScreen() *screen {
	info, err := os.Stdout.Stat()
	return &screen{terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (s *screen) progress(text string) {
	if !s.terminal {
		s.line("... %s", text)
		return
	}
	fmt.Printf("\r\x1b[K  ... %s", text)
	s.shown = true
}

// interval answers how often a clock that runs is shown.
func (s *screen) interval() time.Duration {
	if s.terminal {
		return 100 * time.Millisecond
	}
	return 5 * time.Second
}

func (s *screen) line(format string, args ...any) {
	if s.shown {
		fmt.Print("\r\x1b[K")
		s.shown = false
	}
	fmt.Println(strings.TrimRight("  "+fmt.Sprintf(format, args...), " "))
}

func (s *screen) blank() { s.line("") }

func (s *screen) title(text string) {
	s.blank()
	s.line("%s", text)
	s.line("%s", strings.Repeat("-", len(text)))
}

func (s *screen) step(name, format string, args ...any) {
	s.line("%-11s %s", name, fmt.Sprintf(format, args...))
}

func (s *screen) text(text string) {
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		s.line("%s", line)
	}
}
