package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
)

// unreachedAfter is how long a server may leave every attempt to reach it without
// any answer, before those to come fail at once. The first attempt of an adapter
// takes a little longer.
const unreachedAfter = 7 * time.Second

// logins is a server whose login may have been rotated. Where it refuses the login, the
// secret is read anew and that one tried, then the one before it. A database that the
// login may not enter may be open to another version's user: rotation between two users
// can leave one of them out of it. Each version is read once in a run.
//
// A version may name another server. Where this one refuses the login, and has let
// nobody in, the run is to start over with that version.
type logins struct {
	connect func(secret.Login) server
	stages  map[string]func() (secret.Login, error) // by name; each is read once in a run
	source  string                                  // of the login, for messages
	began   time.Time
	// patience is how long a server is waited for that takes connections and does not
	// serve yet.
	patience time.Duration

	mu        sync.Mutex
	current   secret.Login
	own       map[string]secret.Login // of databases that current may not enter
	refused   []secret.Login          // by the servers that earlier versions name
	taken     bool                    // the server took the login
	other     *secret.Login           // names another server; nil is none
	reached   bool                    // the server has answered
	unreached error                   // it has not, for so long that it won't
}

// errElsewhere is the error of a database on a server that the run is about to leave.
var errElsewhere = fmt.Errorf("%w, and another version of the secret names another server", purge.ErrLogin)

func newLogins(current secret.Login, source string, connect func(secret.Login) server, fetch func(stage string) (secret.Login, error)) *logins {
	l := &logins{connect: connect, source: source, stages: map[string]func() (secret.Login, error){}, began: time.Now(), current: current}
	for _, stage := range []string{secret.Current, secret.Previous} {
		l.stages[stage] = sync.OnceValues(func() (secret.Login, error) { return fetch(stage) })
	}
	return l
}

// leaving tells whether the run is to start over.
func (l *logins) leaving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.other != nil && !l.taken
}

// startOver returns the logins to start over with.
func (l *logins) startOver() *logins {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &logins{
		connect: l.connect, stages: l.stages, source: l.source, began: time.Now(), patience: l.patience,
		current: *l.other, refused: slices.Concat(l.refused, []secret.Login{l.current}),
	}
}

// worked returns the login that the server took, or nil.
func (l *logins) worked() *secret.Login {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.taken {
		return nil
	}
	login := l.current
	return &login
}

// Open implements [purge.Engine].
func (l *logins) Open(ctx context.Context, database string, table purge.Table, lock bool) (conn purge.Conn, err error) {
	err = l.try(database, func(s server) (err error) {
		conn, err = s.Open(ctx, database, table, lock)
		return err
	})
	return conn, err
}

// Databases implements server.
func (l *logins) Databases(ctx context.Context, via string) (all []purge.Database, err error) {
	err = l.try(via, func(s server) (err error) {
		all, err = s.Databases(ctx, via)
		return err
	})
	return all, err
}

// Matching implements comparer.
func (l *logins) Matching(ctx context.Context, via string, names, patterns []string) (matched []string, err error) {
	err = l.try(via, func(s server) (err error) {
		if c, ok := s.(comparer); ok {
			matched, err = c.Matching(ctx, via, names, patterns)
		}
		return err
	})
	return matched, err
}

// try does what needs a login, with the versions of the secret in turn.
func (l *logins) try(database string, do func(server) error) error {
	login, err := l.login(database)
	if err != nil {
		return err
	}
	err = l.record(do(l.connect(login)))
	refused := errors.Is(err, purge.ErrLogin)
	if !refused && !mayNotEnter(login, err) {
		return err
	}
	tried := []secret.Login{login}
	var also error // what is wrong with the last other version
	for _, stage := range []string{secret.Current, secret.Previous} {
		other, unread := l.stages[stage]()
		switch {
		case unread != nil && stage == secret.Current && refused:
			return fmt.Errorf("%w; and the secret can't be read again: %w", err, unread)
		case unread != nil || contains(tried, other):
			continue // most secrets have no version before
		case !sameServer(other, login) && refused && l.leave(other):
			return errElsewhere
		case !sameServer(other, login):
			also = fmt.Errorf("names another server, %s", address(other))
			continue
		}
		tried = append(tried, other)
		met := l.record(do(l.connect(other)))
		if also = useless(other, met); also == nil {
			l.use(other, database, refused)
			return met
		}
	}
	return l.explain(err, also)
}

// useless returns what is wrong with a version of the secret that met err, or nil.
func useless(version secret.Login, err error) error {
	switch {
	case errors.Is(err, purge.ErrLogin):
		return errors.New("is refused")
	case mayNotEnter(version, err):
		return errors.New("may not enter either")
	}
	return nil
}

// explain says what to do where no version of the secret helps; also is what is wrong
// with the last other one.
func (l *logins) explain(err, also error) error {
	other := ""
	if also != nil {
		other = "; another version of the secret " + also.Error()
	}
	if unfit, ok := errors.AsType[purge.NotPurgeable](err); ok {
		unfit.Message += other
		return unfit
	}
	return fmt.Errorf("%w; they come from %s%s", err, l.source, other)
}

// mayNotEnter tells whether err says that the database is closed to this login, and not
// for a while alone. SQL Server says the same of one that does not exist.
func mayNotEnter(login secret.Login, err error) bool {
	if errors.Is(err, purge.ErrNotYet) {
		return false
	}
	unfit, ok := errors.AsType[purge.NotPurgeable](err)
	engine, _ := engineNamed(login.Engine)
	return ok && (unfit.Kind.Code == purge.NoAccess.Code || engine.hidesDatabases && unfit.Kind.Code == purge.NoDatabase.Code)
}

// record returns err, and remembers whether the server took the login, and one that
// does not answer at all: of many databases each would wait for it in turn.
func (l *logins) record(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, unfit := errors.AsType[purge.NotPurgeable](err)
	l.taken = l.taken || err == nil || errors.Is(err, purge.ErrAlreadyRunning) || unfit && !mayNotEnter(l.current, err)
	switch {
	case !errors.Is(err, purge.ErrUnreached) && !errors.Is(err, purge.ErrNotYet):
		l.reached = true
	case errors.Is(err, purge.ErrNotYet) && time.Since(l.began) < l.patience:
	case time.Since(l.began) > unreachedAfter:
		l.unreached = err
	}
	return err
}

func contains(tried []secret.Login, login secret.Login) bool {
	for _, t := range tried {
		if sameServer(t, login) && t.Username.Reveal() == login.Username.Reveal() && t.Password.Reveal() == login.Password.Reveal() {
			return true
		}
	}
	return false
}

func sameServer(a, b secret.Login) bool {
	one, _ := engineNamed(a.Engine)
	other, _ := engineNamed(b.Engine)
	return a.Host == b.Host && a.Port == b.Port && one.name == other.name
}

// login returns the one that worked last, or why none will.
func (l *logins) login(database string) (secret.Login, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own, ok := l.own[database]; ok {
		return own, nil
	}
	switch {
	case l.other != nil && !l.taken:
		return l.current, errElsewhere
	case l.reached:
		return l.current, nil
	}
	return l.current, l.unreached
}

// leave has the run start over with other, unless somebody was let in here, or other
// was refused before.
func (l *logins) leave(other secret.Login) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taken || contains(l.refused, other) {
		return false
	}
	l.other = &other
	return true
}

// use has login used from now on: for all databases, or for one.
func (l *logins) use(login secret.Login, database string, forAll bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if forAll {
		l.current = login
		return
	}
	if l.own == nil {
		l.own = map[string]secret.Login{}
	}
	l.own[database] = login
}
