package main

import (
	"context"
	"errors"
	"sync"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
)

// logins is a server whose login may have been rotated: where it is refused, the
// secret is read again and that one tried, then the one before it, each once for
// a database.
type logins struct {
	connect func(secret.Login) server
	fetch   func(ctx context.Context, stage string) (secret.Login, error)

	mu      sync.Mutex
	current secret.Login
	fetched map[string]secret.Login // by stage, in this run
}

// Open implements [purge.Engine].
func (l *logins) Open(ctx context.Context, database string, claim bool) (table purge.Table, err error) {
	err = l.try(ctx, func(s server) (err error) {
		table, err = s.Open(ctx, database, claim)
		return err
	})
	return table, err
}

// Databases implements server.
func (l *logins) Databases(ctx context.Context, via string) (all []purge.Database, err error) {
	err = l.try(ctx, func(s server) (err error) {
		all, err = s.Databases(ctx, via)
		return err
	})
	return all, err
}

func (l *logins) try(ctx context.Context, do func(server) error) error {
	login := l.login()
	tried := []secret.Login{login}
	err := do(l.connect(login))
	for _, stage := range []string{secret.Current, secret.Previous} {
		if !errors.Is(err, purge.ErrLogin) {
			break
		}
		other, missing := l.stage(ctx, stage)
		if missing != nil || contains(tried, other) {
			continue
		}
		tried = append(tried, other)
		if err = do(l.connect(other)); !errors.Is(err, purge.ErrLogin) {
			l.use(other)
		}
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

func (l *logins) login() secret.Login {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

func (l *logins) use(login secret.Login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = login
}

// stage reads a version of the secret, once in a run.
func (l *logins) stage(ctx context.Context, stage string) (secret.Login, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	login, ok := l.fetched[stage]
	if !ok {
		var err error
		if login, err = l.fetch(ctx, stage); err != nil {
			return login, err
		}
		l.fetched[stage] = login
	}
	return login, nil
}
