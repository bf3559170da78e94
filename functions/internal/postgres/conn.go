// Package postgres adapts Ed-Fi's token tables on PostgreSQL 13 and later, Aurora
// included, to package purge. It is the twin of package sqlserver, file by file:
//
//	conn.go    opens and closes a connection
//	cut.go     windows: looks for expired rows, counts them, cuts batches
//	delete.go  deletes batches
//	limits.go  how long the server lets a statement run, and how it plans it
//	errors.go  says what an error means and what to do about it
//	facts.go   what must be known before anything is deleted
//	check.go   what an operator should know
//	sql.go     every statement that is sent
//
// What only PostgreSQL has:
//
//	pipeline.go  several batches on their way at a time
//	scan.go      rows that nothing tells apart, as they are met
//	pooler.go    tells what pools connections in between, if anything does
package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"edfi-token-purge/functions/internal/dial"
	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// What holds where nothing else is said.
const (
	DefaultPort  = 5432
	DefaultBatch = 5000 // rows
	MaxName      = 63   // bytes of a database's name; the server cuts a longer one without a word
)

const (
	// connectTimeout bounds how long a host is waited for that takes no connection:
	// one that a security group hides answers nothing at all.
	connectTimeout = 8 * time.Second
	// cancelTimeout is how long a canceled statement may take to end before the
	// connection is dropped.
	cancelTimeout = 2 * time.Second
	// closeTimeout bounds what is said to the server when a connection is closed.
	closeTimeout = time.Second
)

// Server is a PostgreSQL server and the login for it.
type Server struct {
	Host        string
	Port        uint16
	User        redact.Secret
	Password    redact.Secret
	TLS         *tls.Config   // nil is no TLS; verification is up to the caller
	LockTimeout time.Duration // longest wait for a lock
	// ConnectTimeout is how long to wait for a server that takes connections and does
	// not serve yet; never less than a host is waited for that takes none.
	ConnectTimeout time.Duration
	// Longest bounds a statement that deletes, unless its batch is Patient; 0 is no
	// bound but the time left.
	Longest time.Duration
	// Linger is how long a canceled statement may take to end, and what is said when
	// a connection is closed, 2 s at most; 0 is that. With a network that swallows
	// everything it passes after the time to stop, once for a statement, once for the
	// last look and once for the closing.
	Linger time.Duration

	resolver *net.Resolver // nil is the system's
}

// Open implements [purge.Engine].
func (s Server) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	c := &conn{server: s, database: database, table: table}
	c.seen, c.prepared = map[string]bool{}, map[string]*pgconn.StatementDescription{}
	if err := c.open(ctx, lock); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// patience returns how long opening a connection may take.
func (s Server) patience() time.Duration { return max(connectTimeout, s.ConnectTimeout) }

// What conn implements beside [purge.Conn].
var (
	_ purge.Pipeliner       = (*conn)(nil)
	_ purge.Witness         = (*conn)(nil)
	_ purge.Rehearser       = (*conn)(nil)
	_ purge.LookExplainer   = (*conn)(nil)
	_ purge.LockTeller      = (*conn)(nil)
	_ purge.DeleteExplainer = (*conn)(nil)
	_ purge.Surveyor        = (*conn)(nil)
	_ purge.WriteCounter    = (*conn)(nil)
	_ purge.Sharer          = (*conn)(nil)
	_ purge.SlotCounter     = (*conn)(nil)
)

// conn implements [purge.Conn].
type conn struct {
	server   Server
	database string
	table    purge.Table
	startup  map[string]string // settings that the log-in asks for; nil is the usual ones
	pg       *pgx.Conn
	facts    facts
	lease
	statements
	careful bool // a row that was met resisted
}

// lease is a session, which may be a pooler's: what the run has in it, and what is put
// back at the end.
type lease struct {
	dialed time.Time   // the host
	pooled bool        // a pooler that keeps sessions apart is in between
	set    []string    // settings; none before it is known for the run's own
	before [][2]string // settings that were in it, with their values
	served bool        // the server has answered a statement
	locked bool
}

// Databases lists all databases of the server, by way of the one named.
func (s Server) Databases(ctx context.Context, via string) ([]purge.Database, error) {
	c := &conn{server: s, database: via}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, s.patience())
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	read, _ := c.pg.Query(ctx, sqlDatabases) // the error comes below
	all, err := pgx.CollectRows(read, func(row pgx.CollectableRow) (d purge.Database, err error) {
		return d, row.Scan(&d.Name, &d.Closed)
	})
	return all, c.explain("list the databases", err)
}

// The settings that a log-in asks for. statement_timeout is among them because one
// that is set for the role would else hold for the statement that lifts it.
var startup = map[string]string{
	"application_name":  "edfi-token-purge",
	"client_encoding":   "UTF8",
	"statement_timeout": "0",
}

// connect logs in. Poolers refuse a log-in that asks for a setting they don't know
// (PgBouncer with 08P01, RDS Proxy with 0A000), and get one that asks for less. A
// role's or server's transaction_timeout or idle_session_timeout may end the first
// statements; only a server that has it takes a log-in that lifts it.
func (c *conn) connect(ctx context.Context) error {
	if c.startup == nil {
		c.startup = startup
	}
	err := c.logIn(ctx)
	if code := sqlState(err); code == pgerrcode.ProtocolViolation || code == pgerrcode.FeatureNotSupported {
		c.startup = maps.Clone(c.startup)
		delete(c.startup, "statement_timeout")
		for _, limit := range sessionLimits {
			delete(c.startup, string(limit))
		}
		err = c.logIn(ctx)
	}
	return c.explain("connect", err)
}

// logIn logs in at one of the host's addresses.
func (c *conn) logIn(ctx context.Context) error {
	dialing, stop := context.WithTimeout(ctx, connectTimeout)
	defer stop()
	c.dialed = time.Now()
	var addresses []dial.Address
	var err error
	if network, socket := pgconn.NetworkAddress(c.server.Host, c.server.Port); network != "tcp" {
		addresses = []dial.Address{{Network: network, Address: socket}}
	} else if addresses, err = dial.LookUp(dialing, c.server.resolver, c.server.Host, c.server.Port); err != nil {
		return err
	}
	return dial.Try(ctx, dialing, addresses, c.logInOver, isNotServed)
}

// logInOver logs in over a connection that is there.
func (c *conn) logInOver(ctx context.Context, over net.Conn) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	address := over.RemoteAddr()
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{address.String()}, nil }
	first := over
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if conn := first; conn != nil {
			first = nil
			return conn, nil
		}
		return (&net.Dialer{}).DialContext(ctx, address.Network(), address.String()) // to cancel a statement
	}
	pg, err := pgx.ConnectConfig(ctx, config)
	if err == nil {
		c.pg = pg
	}
	return err
}

func (c *conn) open(ctx context.Context, lock bool) error {
	ctx, cancel := context.WithTimeout(ctx, c.server.patience())
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return err
	}
	err := c.begin(ctx, lock)
	for range sessionLimits { // each at most once
		limit, ended := errors.AsType[sessionLimit](err)
		if !ended {
			break
		}
		c.pg.Close(ctx) //nolint:errcheck // it is gone
		c.startup = maps.Clone(c.startup)
		c.startup[string(limit)] = "0"
		if err = c.connect(ctx); err == nil {
			err = c.begin(ctx, lock)
		}
	}
	for canceled := 0; errors.Is(err, purge.ErrLocked) && c.canceled > canceled; { // by somebody
		canceled = c.canceled
		err = c.begin(ctx, lock)
	}
	if err != nil {
		return err
	}
	if err := c.facts.fault(c.database, lock); err != nil {
		return err
	}
	if lock && !c.locked {
		return purge.ErrAlreadyRunning
	}
	return nil
}

// begin examines the table in a session of our own. Nothing is set in a session that
// the log-in did not open, until a pooler is known to leave it to us.
func (c *conn) begin(ctx context.Context, lock bool) error {
	age := float64((time.Since(c.dialed) + mostDelay).Milliseconds())
	if err := c.examine(ctx, session{c.pg.PgConn().PID(), age}, lock); err != nil || len(c.set) > 0 {
		return err
	}
	backend := c.facts.backend
	if err := c.findOutPooling(ctx); err != nil {
		return err
	}
	c.pooled = true
	if err := c.readBefore(ctx); err != nil {
		return err
	}
	if err := c.examine(ctx, session{backend: backend}, lock); err != nil {
		return err
	}
	if len(c.set) == 0 {
		return errPooled
	}
	return nil
}

// config builds the connection's settings field by field: a password may hold
// any character, so no connection string is put together.
func (c *conn) config() (*pgx.ConnConfig, error) {
	config, err := defaults()
	if err != nil {
		return nil, fmt.Errorf("the driver has no defaults: %s", redact.Text(err.Error()))
	}
	config.Host, config.Port, config.Database = c.server.Host, c.server.Port, c.database
	config.User, config.Password = c.server.User.Reveal(), c.server.Password.Reveal()
	config.TLSConfig, config.Fallbacks = c.server.TLS, nil
	config.RuntimeParams = c.startup
	config.ConnectTimeout = 0 // the context has it
	// One round trip a statement; those that come often are prepared by hand.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &canceler{conn: conn, linger: c.server.linger()}
	}
	return config, nil
}

// environment guards the variables that defaults hides.
var environment sync.Mutex

// defaults returns the driver's own settings. It has a configuration made by its
// parser alone, and the parser reads libpq's variables, some of which it can't be
// talked out of: PGSERVICE, PGTARGETSESSIONATTRS. So they are away while it parses.
func defaults() (*pgx.ConnConfig, error) {
	environment.Lock()
	defer environment.Unlock()
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			os.Unsetenv(name)            //nolint:errcheck // it fails for a malformed name alone
			defer os.Setenv(name, value) //nolint:errcheck // the same
		}
	}
	return pgx.ParseConfig("host=localhost user=nobody sslmode=disable")
}

// Close implements [purge.Conn].
func (c *conn) Close() {
	if c.pg == nil {
		return
	}
	ctx, wire := context.Background(), c.pg.PgConn().Conn()
	if !c.pg.IsClosed() {
		// Not the context's deadline: the driver would wait for a cancellation as well.
		wire.SetDeadline(time.Now().Add(min(closeTimeout, c.server.linger()))) //nolint:errcheck // it has ended already
		c.leave(ctx)
	}
	c.pg.Close(ctx) //nolint:errcheck // nothing is at stake: every batch is committed
	// After a statement that was given up the driver keeps the socket for some
	// seconds, and the server with it the lock.
	wire.Close() //nolint:errcheck // as above
}

// leave makes the session as it was: somebody may meet it, and a server under load ends
// one some time after its client has left. A run that follows at once must not meet the
// lock.
func (c *conn) leave(ctx context.Context) {
	if len(c.set) == 0 && !c.locked && !c.pooled { // nothing of ours is in it
		return
	}
	// All in one round trip. What is prepared is closed by the protocol: a pooler that
	// keeps count of it does not read DEALLOCATE.
	end := c.pg.PgConn().StartPipeline(ctx)
	for _, statement := range c.prepared {
		end.SendDeallocate(statement.Name)
	}
	if c.locked || c.pooled {
		end.SendQueryParams(sqlUnlock, nil, nil, nil, nil)
	}
	changed := append([]string{"statement_timeout", "lock_timeout", "enable_indexscan", "enable_seqscan", "plan_cache_mode"}, c.set...)
	for _, name := range changed {
		end.SendQueryParams("RESET "+pgx.Identifier{name}.Sanitize(), nil, nil, nil, nil)
	}
	for _, had := range c.before {
		if slices.Contains(changed, had[0]) {
			end.SendQueryParams(sqlSet, [][]byte{[]byte(had[0]), []byte(had[1])}, nil, nil, nil)
		}
	}
	if end.Sync() == nil {
		end.Close() //nolint:errcheck // it goes with the session at the latest
	}
}

// readBefore reads what is set in a session that others have had.
func (c *conn) readBefore(ctx context.Context) error {
	read, _ := c.pg.Query(ctx, sqlBefore) // the error comes below
	before, err := pgx.CollectRows(read, func(row pgx.CollectableRow) (had [2]string, err error) { return had, row.Scan(&had[0], &had[1]) })
	c.before = before
	return c.explain("read the settings of the session", err)
}

// Switch implements [purge.Conn].
func (c *conn) Switch(ctx context.Context, table purge.Table) error {
	c.table, c.limits, c.canceled = table, nil, 0 // the settings set anew lift the limits
	if err := c.examine(ctx, session{backend: c.facts.backend}, false); err != nil {
		return err
	}
	return c.facts.fault(c.database, c.locked)
}

// Facts implements [purge.Conn].
func (c *conn) Facts() purge.Facts {
	f := c.facts
	return purge.Facts{Now: f.now.Time, Clock: f.clock.Time, Local: c.table.Local && f.typeName != withZone, Indexed: f.indexed, Findings: f.findings(), Writes: f.writes, Counted: f.asked}
}

// Writes implements [purge.WriteCounter].
func (c *conn) Writes(ctx context.Context) (int64, error) {
	var count int64
	plan := byIndex
	if c.limits != nil { // which need not be set anew for this
		plan = c.limits.plan
	}
	err := c.row(ctx, plan, &count, sqlWrites)
	return count, c.explain("count transactions", err)
}

// FreeSlots implements [purge.SlotCounter].
func (c *conn) FreeSlots(ctx context.Context) (free int, err error) {
	err = c.row(ctx, byIndex, &free, sqlFreeSlots)
	return free, c.explain("count free connections", err)
}
