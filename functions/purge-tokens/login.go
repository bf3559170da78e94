package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
)

// unreachedAfter is how long a server may leave every attempt to reach it without
// any answer, before those to come fail at once. The first attempt of an adapter
// takes a little longer.
const unreachedAfter = 7 * time.Second

// logins is a server whose login may have been rotated: where it is refused, the
// secret is read again and that one tried, then the one before it, each once for
// a database.
type logins struct {
	connect func(secret.Login) server
	stages  map[string]func() (secret.Login, error) // by name; each is read once in a run
	began   time.Time

	mu        sync.Mutex
	current   secret.Login
	reached   bool  // the server has answered
	unreached error // it has not, for so long that it won't
}

func newLogins(current secret.Login, connect func(secret.Login) server, fetch func(stage string) (secret.Login, error)) *logins {
	l := &logins{connect: connect, stages: map[string]func() (secret.Login, error){}, began: time.Now(), current: current}
	for _, stage := range []string{secret.Current, secret.Previous} {
		l.stages[stage] = sync.OnceValues(func() (secret.Login, error) { return fetch(stage) })
	}
	return l
}

// Open implements [purge.Engine].
func (l *logins) Open(ctx context.Context, database string, table purge.Table, lock bool) (conn purge.Conn, err error) {
	err = l.try(func(s server) (err error) {
		conn, err = s.Open(ctx, database, table, lock)
		return err
	})
	return conn, err
}

// Databases implements server.
func (l *logins) Databases(ctx context.Context, via string) (all []purge.Database, err error) {
	err = l.try(func(s server) (err error) {
		all, err = s.Databases(ctx, via)
		return err
	})
	return all, err
}

func (l *logins) try(do func(server) error) error {
	login, err := l.login()
	if err != nil {
		return err
	}
	tried := []secret.Login{login}
	err = l.recordReachability(do(l.connect(login)))
	for _, stage := range []string{secret.Current, secret.Previous} {
		if !errors.Is(err, purge.ErrLogin) {
			break
		}
		other, unread := l.stages[stage]()
		if unread != nil && stage == secret.Previous {
			break // most secrets have none
		}
		if unread != nil {
			return fmt.Errorf("%w; and the secret can't be read again: %w", err, unread)
		}
		if contains(tried, other) {
			continue
		}
		tried = append(tried, other)
		if err = do(l.connect(other)); !errors.Is(err, purge.ErrLogin) {
			l.use(other)
		}
	}
	return err
}

// recordReachability returns err, and remembers a server that does not answer at all: of many
// databases each would wait for it in turn.
func (l *logins) recordReachability(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !errors.Is(err, purge.ErrUnreached):
		l.reached = true
	case time.Since(l.began) > unreachedAfter:
		l.unreached = err
	}
	return err
}

func contains(tried []secret.Login, login secret.Login) bool {
	for _, t := range tried {
		if t.Username.Reveal() == login.Username.Reveal() && t.Password.Reveal() == login.Password.Reveal() {
			return true
		}
	}
	return false
}

// login returns the one that worked last, or why none will.
func (l *logins) login() (secret.Login, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reached {
		return l.current, nil
	}
	return l.current, l.unreached
}

func (l *logins) use(login secret.Login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = login
}
