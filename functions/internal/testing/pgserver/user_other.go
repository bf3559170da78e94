//go:build !linux

package pgserver

import "syscall"

// attributes sets nothing: on these systems nobody runs tests as root, and
// Ctrl-C reaches the server too.
func attributes() *syscall.SysProcAttr { return nil }

func giveAway(...string) error { return nil }
