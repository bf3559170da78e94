package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
)

// A purge needs a session to itself: it has settings, prepared statements and a lock
// in it. PgBouncer and its like give one to a client for as long as it stays (pool_mode
// session), or let it go after each transaction or statement; then all of that would
// be left to whoever comes next.
//
// Whether anything is in between costs nothing to know. A log-in ends with the number
// of the server's process. A pooler can't pass that on, for it logs its clients in
// itself and gives them whichever session is free; it makes a number up. So each
// statement that sets something does so only where that number is its own process's.
//
// Whether a pooler keeps sessions apart it does not say. From within one connection it
// can't be seen either: a pool that nobody else uses gives the same session again and
// again. A second connection sees it. While the first one rests, with no transaction
// open, a session that it holds goes to nobody else; and one that it does not hold
// is among those that the second one may get. So both ask in turns which process serves
// them. The order of the turns is such that neither a pool that gives the session that
// was free last, nor one that gives each in its turn, gives everyone the same one each
// time; and the second connection is a new one for each round, as several poolers may
// share a port. One that still looks right by chance is found out when a limit is set in
// mid-run, which is not done in a session of somebody else's. Where the pool has none left for the second connection, and the first
// one is served nevertheless, ahead of one that waits, it holds its own.
//
// RDS Proxy, by its documentation, does so too until a session is pinned, and pins it for
// set_config, for advisory locks and for the protocol's prepared statements, which is
// all that is sent here. So a pinned session looks like pool_mode session, and one that
// isn't is refused.

const (
	poolerRounds = 6
	// poolerPatience is how long a second connection may wait for a session until the
	// pool counts as exhausted.
	poolerPatience = time.Second
)

var errPooled = purge.NotPurgeable{
	Kind:    purge.TransactionPooler,
	Message: "a pooler in between gives each transaction another session, and a purge needs one to itself: give the port of the PostgreSQL server itself (DB_PORT, or port in the secret; usually 5432), or of a pool with pool_mode = session",
	Server:  true,
}

// findOutPooling returns errPooled where the pooler in between does not leave the
// session to this connection.
func (c *conn) findOutPooling(ctx context.Context) error {
	for range poolerRounds {
		proved, err := c.comparePooled(ctx)
		if err != nil || proved {
			return err
		}
	}
	return nil
}

// comparePooled compares the sessions of this connection with those of another one. It
// tells whether nothing is left to doubt.
func (c *conn) comparePooled(ctx context.Context) (proved bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		backends []uint32
		err      error
	}
	other := make(chan answer, 1)
	go func() {
		second := &conn{server: c.server, database: c.database, startup: c.startup}
		defer second.Close()
		err := second.connect(ctx)
		var backends []uint32
		for range 2 {
			var b uint32
			if err == nil {
				b, err = second.backend(ctx)
			}
			backends = append(backends, b)
		}
		other <- answer{backends, err}
	}()
	var second answer
	select {
	case second = <-other:
	case <-time.After(poolerPatience):
		if err := c.sameBackend(ctx); err != nil {
			return false, err
		}
		select {
		case second = <-other:
		case <-time.After(poolerPatience / 4): // an answer that was under way
			cancel()
			<-other
			return true, nil
		}
	}
	switch {
	case second.err != nil:
		return false, fmt.Errorf("%w, through a pooler, to find out how that pools", second.err)
	case second.backends[0] != second.backends[1] || second.backends[0] == c.facts.backend:
		return false, errPooled
	}
	return false, c.sameBackend(ctx)
}

// sameBackend returns errPooled where another session serves this connection now.
func (c *conn) sameBackend(ctx context.Context) error {
	backend, err := c.backend(ctx)
	if err == nil && backend != c.facts.backend {
		return errPooled
	}
	return err
}

// backend returns the number of the process that serves this connection now.
func (c *conn) backend(ctx context.Context) (pid uint32, err error) {
	err = c.pg.QueryRow(ctx, sqlBackend).Scan(&pid)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errNoAnswer
	}
	return pid, c.explain("find out about a pooler", err)
}
