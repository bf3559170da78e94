package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
)

// A purge needs a session to itself: it has settings, prepared statements and a lock
// in it. PgBouncer and its like give one to a client for as long as it stays (pool_mode
// session), or let it go after each transaction or statement; then all of that would
// be left to whoever comes next.
//
// Whether anything is in between costs nothing to know. A log-in ends with the number
// of the server's process. Most poolers can't pass that on, for they log their clients in
// themselves and give them whichever session is free; they make a number up. Some pass on
// what the server once said to them (pgagroal, by its code; it ends a log-in with the
// number of a session that it then puts back). Then the process is older than the log-in.
// So each statement that sets something does so only where the number is its own process's,
// and at first only in a process no older than the log-in. A pooler that opened its
// session for this very log-in and passed on its number is the one that can't be seen.
// The session is left as it was for that reason too.
//
// Whether a pooler keeps sessions apart it does not say. From within one connection it
// can't be seen either: a pool that nobody else uses gives the same session again and
// again. A second connection sees it. While the first one rests, with no transaction
// open, a session that it holds goes to nobody else; and one that it does not hold
// is among those that the second one may get. So both ask in turns which process serves
// them. The order of the turns is such that neither a pool that gives the session that
// was free last, nor one that gives each in its turn, gives everyone the same one each
// time. Where the pool has none left for the second connection, and the first one is
// served nevertheless, ahead of one that waits, it holds its own. One that is only slow,
// as over a long way, does not wait for a session.
//
// Several poolers may share a port, so that the two connections never meet. What proves
// a session then is a notification: it reaches a client that rests only where its session
// is its own, for a pooler that has taken the session back knows no client to pass it on
// to (PgBouncer's table of features has LISTEN for session pooling alone). Who sends it,
// and by way of which pooler, does not matter to the server. One that has not come while
// the client rests comes with the answer to the next statement, if the session is only
// slow; if it doesn't, somebody has swallowed it. The name that is listened to is random,
// and is listened to no more as soon as that is settled. It is all that is ever set
// before, and only where the comparison saw nothing. One that still looks right is found
// out when a limit is set in mid-run, which is not done in a session of somebody else's.
//
// RDS Proxy, by its documentation, gives each transaction another session until one is
// pinned, and pins it for a setting, an advisory lock or LISTEN, but since 2023 no more for
// the protocol's prepared statements. Of what comes before the comparison it may take some
// for a setting. So a run is served or refused there, as it may be.
//
// pgcat and others keep back what the server says unasked until the client's next
// statement, in session mode too. Their sessions can't be proved, so they are refused.

const (
	// mostDelay is how long a statement may be under way, on a busy machine too: a process
	// that is older than the log-in by more is somebody else's.
	mostDelay    = time.Second
	poolerRounds = 6
	// poolerPatience is how long a second connection that has logged in may wait for a
	// session until the pool counts as exhausted.
	poolerPatience = time.Second
	// logInPatience is the same for one that has not: some poolers log nobody in until
	// they have a session.
	logInPatience = 10 * time.Second
	// firstCall is how long the first notification is waited for; the next ones longer.
	firstCall = 20 * time.Millisecond
	mostCalls = 4
)

var errPooled = purge.NotPurgeable{
	Kind:    purge.TransactionPooler,
	Message: "a pooler in between gives each transaction another session, and a purge needs one to itself: give the port of the PostgreSQL server itself (DB_PORT, or port in the secret; usually 5432), or of a pool with pool_mode = session",
	Server:  true,
}

// errUnheard is beside errPooled where no notification has reached the connection.
var errUnheard = purge.NotPurgeable{
	Kind:    purge.TransactionPooler,
	Message: "a pooler in between passes no notification on to a connection that rests, so nothing proves that this one has its session to itself: give the port of the PostgreSQL server itself (DB_PORT, or port in the secret; usually 5432), or of a PgBouncer with pool_mode = session",
	Server:  true,
}

// findOutPooling returns errPooled or errUnheard where the pooler in between does not leave the
// session to this connection.
func (c *conn) findOutPooling(ctx context.Context) error {
	for round := range poolerRounds {
		last := round == poolerRounds-1
		second, err := c.comparePooled(ctx)
		if errors.Is(err, purge.ErrLost) && !last { // PgBouncer may end one for another's cancellation
			continue
		}
		if second == nil || err != nil {
			return err
		}
		if last {
			err = c.listenTo(ctx, second)
		}
		second.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// asked is a second connection, and which processes served it.
type asked struct {
	conn     *conn
	backends [2]uint32
	err      error
}

// askSecond opens a second connection and asks twice which process serves it. It closes
// in when the connection is logged in.
func (c *conn) askSecond(ctx context.Context, in chan<- struct{}) (a asked) {
	a.conn = &conn{server: c.server, database: c.database, startup: c.startup}
	if a.err = a.conn.connect(ctx); a.err == nil {
		close(in)
	}
	for i := range a.backends {
		if a.err == nil {
			a.backends[i], a.err = a.conn.backend(ctx)
		}
	}
	return a
}

// await waits for what the second connection has to say. answered is false where that
// waits for a session while this one is served.
func (c *conn) await(ctx context.Context, in <-chan struct{}, other <-chan asked) (second asked, answered bool, err error) {
	select {
	case second = <-other:
		return second, true, nil
	case <-in:
	case <-time.After(logInPatience):
	}
	select {
	case second = <-other:
		return second, true, nil
	case <-time.After(poolerPatience):
	}
	began := time.Now()
	if err := c.sameBackend(ctx); err != nil {
		return second, false, err
	}
	select {
	case second = <-other: // an answer that was under way
		return second, true, nil
	case <-time.After(poolerPatience/4 + 8*time.Since(began)):
		return second, false, nil
	}
}

// comparePooled compares the sessions of this connection with those of a second one,
// and returns that, or nil where nothing is left to doubt.
func (c *conn) comparePooled(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, other := make(chan struct{}), make(chan asked, 1)
	go func() { other <- c.askSecond(ctx, in) }()
	second, answered, err := c.await(ctx, in, other)
	if !answered {
		cancel()
		(<-other).conn.Close()
		return nil, err
	}
	switch {
	case second.err != nil:
		err = fmt.Errorf("%w, through a pooler, to find out how that pools", second.err)
	case second.backends[0] != second.backends[1] || second.backends[0] == c.facts.backend:
		err = errPooled
	default:
		err = c.sameBackend(ctx)
	}
	if err != nil {
		second.conn.Close()
		return nil, err
	}
	return second.conn, nil
}

// listenTo returns errUnheard where this connection hears no notification of the second
// one while it rests.
func (c *conn) listenTo(ctx context.Context, second *conn) error {
	channel := "edfi_token_purge_" + rand.Text()
	err := c.batch(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()+"; "+sqlBackend)
	if sqlState(err) == pgerrcode.ReadOnlySQLTransaction { // a reader: a purge fails there anyway
		return nil
	}
	defer c.unlisten(channel)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && c.kindOf(refused) == nil { // some know no LISTEN
		return errUnheard
	}
	if err != nil {
		return c.explain("find out about a pooler", err)
	}
	wait := firstCall
	for range mostCalls {
		if _, err := second.pg.Exec(ctx, sqlNotify, channel); err != nil {
			return second.explain("find out about a pooler", err)
		}
		if heard, err := c.hears(ctx, channel, wait); heard || err != nil {
			return err
		}
		if err := c.sameBackend(ctx); err != nil {
			return err
		}
		if late, err := c.hears(ctx, channel, 0); !late || err != nil {
			return cmp.Or(err, error(errUnheard))
		}
		wait *= 5
	}
	return errUnheard
}

// batch sends statements that end with sqlBackend, in one transaction, and returns
// errPooled where another session served them.
func (c *conn) batch(ctx context.Context, statements string) error {
	results, err := c.pg.PgConn().Exec(ctx, statements).ReadAll()
	if err != nil {
		return err
	}
	if last := results[len(results)-1].Rows; len(last) != 1 || string(last[0][0]) != strconv.FormatUint(uint64(c.facts.backend), 10) {
		return errPooled
	}
	return nil
}

// hears waits so long for a notification, and sends nothing meanwhile.
func (c *conn) hears(ctx context.Context, channel string, wait time.Duration) (bool, error) {
	wire := c.pg.PgConn().Conn()
	wire.SetReadDeadline(time.Now().Add(wait))                                       //nolint:errcheck // the read says it
	stop := context.AfterFunc(ctx, func() { wire.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the same
	defer func() {
		stop()
		wire.SetReadDeadline(time.Time{}) //nolint:errcheck // the next read says it
	}()
	for {
		heard, err := c.pg.WaitForNotification(context.Background()) // the driver would cancel what is no statement
		var network net.Error
		switch {
		case err == nil && heard.Channel == channel:
			return true, nil
		case err == nil: // left by whoever had the session before
		case ctx.Err() != nil:
			return false, c.explain("find out about a pooler", ctx.Err())
		case errors.As(err, &network) && network.Timeout():
			return false, nil
		default:
			return false, c.explain("find out about a pooler", err)
		}
	}
}

// unlisten ends what listenTo began, in the very session. A pooler that has taken that
// back gives it again soon, as a rule.
func (c *conn) unlisten(channel string) {
	ctx, cancel := context.WithTimeout(context.Background(), c.server.linger())
	defer cancel()
	for {
		err := c.batch(ctx, "UNLISTEN "+pgx.Identifier{channel}.Sanitize()+"; "+sqlBackend)
		if err == nil || !errors.Is(err, errPooled) || ctx.Err() != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
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
		err = errEnded
	}
	return pid, c.explain("find out about a pooler", err)
}
