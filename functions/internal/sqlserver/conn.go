// Package sqlserver adapts Ed-Fi's token tables on SQL Server 2017 and later to
// package purge; it runs on Babelfish as well. It is the twin of package postgres,
// file by file:
//
//	conn.go    opens and closes a connection
//	cut.go     windows: looks for expired rows, counts them, cuts batches
//	delete.go  deletes a batch
//	limits.go  how long the server lets a statement wait, and when it is given up
//	errors.go  says what an error means and what to do about it
//	facts.go   what must be known before anything is deleted
//	check.go   what an operator should know
//	sql.go     every statement that is sent
//
// What only SQL Server has:
//
//	names.go      which names of databases are one to the server
//	types.go      what columns hold: times, and keys of several types
//	memory.go     what the connections of a run know together, and of others' writes
//	babelfish.go  what only Babelfish needs
package sqlserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"time"

	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/msdsn"

	"edfi-token-purge/functions/internal/dial"
	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// What holds where nothing else is said.
const (
	DefaultPort  = 1433
	DefaultBatch = 2000 // rows
	// MostBatch is the most rows of a statement. "A single Transact-SQL statement
	// acquires at least 5,000 locks on a single nonpartitioned table or index": from
	// then on they become one on the whole table, and nobody gets a token. "Lock
	// escalation isn't triggered if a statement acquires 3,000 locks in one index and
	// 3,000 locks in another index of the same table" (Transaction locking and row
	// versioning guide, "Escalation threshold for a Transact-SQL statement"). So what
	// counts is one index, however many there are, an indexed view's or a heap among
	// them: there a row takes a lock on its entry, and one on the page that it is on.
	// The keys of tokens are random, so that in the worst case no two rows share a
	// page: two locks a row, 4,800 in all.
	MostBatch = 2400
	MaxName   = 128 // UTF-16 units of a database's name
)

const (
	// connectTimeout bounds everything up to the end of the log-in. A host that
	// a security group hides answers nothing at all.
	connectTimeout = 8 * time.Second
	// openTimeout bounds the log-in and the first statements, which a server
	// compiles before it runs them: a busy one takes its time.
	openTimeout = 20 * time.Second
	// cancelTimeout is how long a canceled statement may take to end before the
	// connection is dropped.
	cancelTimeout = 2 * time.Second
	// closeTimeout bounds what is said to the server when a connection is closed.
	closeTimeout = time.Second
)

// Server is a SQL Server and the login for it.
type Server struct {
	Host        string
	Port        uint16
	User        redact.Secret
	Password    redact.Secret
	TLS         *tls.Config   // nil is no TLS; verification is up to the caller
	LockTimeout time.Duration // longest wait for a lock
	// ConnectTimeout is how long a server is waited for that takes connections and
	// does not serve yet.
	ConnectTimeout time.Duration
	// Longest bounds a statement that deletes, unless its batch is Patient; 0 is no
	// bound but the time left.
	Longest time.Duration
	// Linger is how long a canceled statement may take to end, and what is said when
	// a connection is closed, 2 s at most; 0 is that. With a network that swallows
	// everything it passes after the time to stop, once for a statement, once for the
	// last look and once for the closing.
	Linger time.Duration
	Strict bool    // encrypted from the first byte (TDS 8.0), as SQL Server 2022 can demand
	Memory *Memory // of the run; nil is none, and no sense of others' writes

	resolver *net.Resolver // nil is the system's
}

// Open implements [purge.Engine].
func (s Server) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	c := &conn{server: s, database: database, table: table}
	if err := c.open(ctx, lock); err != nil {
		c.Close()
		if c.session != nil && errors.Is(err, purge.ErrLost) { // as of a server that shuts down, or fails over
			err = purge.Also(err, purge.ErrNotYet)
		}
		return nil, s.whyNot(ctx, database, err)
	}
	s.Memory.opened(database)
	return c, nil
}

// whyNot looks in the catalogue for why a database can't be opened: the server has one
// error for many reasons. A login that may not look there gets that error.
func (s Server) whyNot(ctx context.Context, database string, err error) error {
	unfit, ok := errors.AsType[purge.NotPurgeable](err)
	if !ok || unfit.Kind.Code != purge.NoDatabase.Code || errors.Is(err, purge.ErrNotYet) {
		return err
	}
	c := &conn{server: s, database: "master"}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if c.connect(ctx) != nil {
		return err
	}
	var state, access string
	var enters bool
	switch missing := c.session.QueryRowContext(ctx, sqlDatabaseState, sql.Named("name", database)).Scan(&state, &access, &enters); {
	case errors.Is(missing, sql.ErrNoRows):
		unfit.Message = fmt.Sprintf("database %s does not exist on this server", database)
		return unfit
	case missing != nil:
		return err
	}
	c.database = database
	switch {
	case state == "recovering":
		return purge.Also(purge.NotPurgeable{Kind: purge.NoDatabase, Message: fmt.Sprintf("database %s is being recovered", database)}, purge.ErrNotYet)
	case state != "online":
		unfit.Message = fmt.Sprintf("database %s can't be opened: it is not online, but %s", database, state)
		return unfit
	case access == "single_user":
		unfit.Message = fmt.Sprintf("database %s can't be opened: it is in single-user mode, and somebody is in: ALTER DATABASE %s SET MULTI_USER", database, quoteName(database))
		return unfit
	case access == "restricted_user" && !enters:
		unfit.Message = fmt.Sprintf("database %s can't be opened: it is in restricted mode, for its owners alone: ALTER DATABASE %s SET MULTI_USER", database, quoteName(database))
		return unfit
	case !enters:
		return c.noAccess("it has no user there")
	default: // it may have come back just now
		return purge.Also(unfit, purge.ErrNotYet)
	}
}

// What conn implements beside [purge.Conn].
var (
	_ purge.Rehearser       = (*conn)(nil)
	_ purge.LookExplainer   = (*conn)(nil)
	_ purge.LockTeller      = (*conn)(nil)
	_ purge.DeleteExplainer = (*conn)(nil)
	_ purge.Surveyor        = (*conn)(nil)
	_ purge.WriteCounter    = (*conn)(nil)
)

// conn implements [purge.Conn].
type conn struct {
	server         Server
	database       string
	table          purge.Table
	facts          facts
	deleteVerified bool    // DELETE does remove rows
	commits        bool    // a trigger commits
	limits         *limits // nil is none set
	lease
}

// lease is a session, and what the run has in it.
type lease struct {
	pool     *sql.DB // of the one session
	session  *sql.Conn
	wire     net.Conn             // under the session
	secured  *tls.ConnectionState // nil is not at all
	examined bool
	locked   bool
}

// Databases lists all databases of the server, by way of the one named.
func (s Server) Databases(ctx context.Context, via string) ([]purge.Database, error) {
	c := &conn{server: s, database: via}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	read, err := c.session.QueryContext(ctx, sqlDatabases)
	if err != nil {
		return nil, c.explain("list the databases", err)
	}
	defer read.Close()
	var all []purge.Database
	for read.Next() {
		var d purge.Database
		if err := read.Scan(&d.Name, &d.Closed); err != nil {
			return nil, c.explain("list the databases", err)
		}
		all = append(all, d)
	}
	return all, c.explain("list the databases", read.Err())
}

func (c *conn) connect(ctx context.Context) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := c.logIn(connecting, config); err != nil {
		return c.explain("connect", err)
	}
	deadline, _ := ctx.Deadline() // until the first statement with limits of its own
	return c.wire.SetDeadline(deadline)
}

// logIn logs in at one of the host's addresses.
func (c *conn) logIn(ctx context.Context, config msdsn.Config) error {
	addresses, err := dial.LookUp(ctx, c.server.resolver, c.server.Host, c.server.Port)
	if err != nil {
		return err
	}
	return dial.Try(ctx, ctx, addresses, func(ctx context.Context, over net.Conn) error { return c.logInOver(ctx, config, over) }, isNotServed)
}

// logInOver logs in over a connection that is there.
func (c *conn) logInOver(ctx context.Context, config msdsn.Config, over net.Conn) error {
	connector := mssql.NewConnectorConfig(config)
	connector.Dialer = &dialer{conn: c, over: over}
	pool := sql.OpenDB(connector)
	session, err := pool.Conn(ctx)
	if err != nil {
		pool.Close() //nolint:errcheck // it has no session
		over.Close() //nolint:errcheck // which the driver may not have asked for
		return err
	}
	c.pool, c.session = pool, session
	return nil
}

// dialer hands the driver the wire. The driver does not look at the context during the
// handshakes, so the wire itself gives up in time.
type dialer struct {
	*conn
	over  net.Conn
	asked string // the address that the driver knows the wire by; "" before it asks
}

// DialContext implements [mssql.Dialer]. A server may send the driver on to another one.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	wire := d.over
	if d.asked != "" {
		if address == d.asked {
			address = d.over.RemoteAddr().String()
		}
		var err error
		if wire, err = (&net.Dialer{}).DialContext(ctx, network, address); err != nil {
			return nil, err
		}
	}
	d.asked = cmp.Or(d.asked, address)
	deadline, _ := ctx.Deadline()
	d.wire = wire
	return wire, wire.SetDeadline(deadline)
}

// HostName implements [mssql.HostDialer]. It makes the driver leave the look-up of
// the name to DialContext.
func (d *dialer) HostName() string { return d.server.Host }

func (c *conn) open(ctx context.Context, lock bool) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return err
	}
	if err := c.examine(ctx); err != nil {
		return err
	}
	if err := c.facts.fault(c.database, lock); err != nil {
		return err
	}
	c.examined = true
	if !lock {
		return nil
	}
	var result int
	if err := c.session.QueryRowContext(ctx, sqlLock).Scan(&result); err != nil {
		return c.explain("lock the database", err)
	}
	switch {
	case result == -1: // the time is up
		return purge.ErrAlreadyRunning
	case result < 0:
		return fmt.Errorf("lock the database: sp_getapplock returned %d", result)
	}
	c.locked = true
	return nil
}

// config builds the connection's settings field by field: a password may hold
// any character, so no connection string is put together.
func (c *conn) config() (msdsn.Config, error) {
	config, err := msdsn.Parse("")
	if err != nil {
		return config, errors.New("the driver refuses its own defaults")
	}
	config.Host, config.Port, config.Database = c.server.Host, uint64(c.server.Port), c.database
	config.User, config.Password = c.server.User.Reveal(), c.server.Password.Reveal()
	config.TLSConfig, config.Encryption = c.server.TLS, msdsn.EncryptionRequired
	if c.server.Strict {
		config.Encryption = msdsn.EncryptionStrict
	}
	if c.server.TLS == nil {
		config.Encryption = msdsn.EncryptionDisabled
	} else { // the driver keeps the connection to itself
		config.TLSConfig = c.server.TLS.Clone()
		config.TLSConfig.VerifyConnection = func(state tls.ConnectionState) error {
			c.secured = &state
			return nil
		}
	}
	config.AppName = "edfi-token-purge"
	config.DialTimeout = connectTimeout
	// Whether a statement may be sent again is for the domain to say.
	config.DisableRetry = true
	return config, nil
}

// Close implements [purge.Conn].
func (c *conn) Close() {
	if c.session != nil {
		patience := min(closeTimeout, c.server.linger())
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		// A server under load ends a session some time after its client has left. A
		// run that follows at once must not meet the lock.
		if c.locked {
			c.wire.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // ctx says the same
			c.session.ExecContext(ctx, sqlUnlock)        //nolint:errcheck // it goes with the session at the latest
		}
		c.session.Close() //nolint:errcheck // nothing is at stake: every batch is committed
	}
	if c.pool != nil {
		c.pool.Close() //nolint:errcheck // as above
	}
}

// Switch implements [purge.Conn].
func (c *conn) Switch(ctx context.Context, table purge.Table) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline() // and not that of the statement before
	if err := c.wire.SetDeadline(deadline); err != nil {
		return c.explain("examine the database", err)
	}
	c.table, c.deleteVerified, c.commits, c.examined = table, false, false, false
	if err := c.examine(ctx); err != nil {
		return err
	}
	if err := c.facts.fault(c.database, c.locked); err != nil {
		return err
	}
	c.examined = true
	return nil
}

// Facts implements [purge.Conn].
func (c *conn) Facts() purge.Facts {
	return purge.Facts{Now: c.facts.now, Clock: c.facts.clock, Local: c.table.Local, Indexed: c.facts.indexed, Findings: c.facts.findings()}
}
