// Package postgres adapts Ed-Fi's token tables on PostgreSQL 13 and later, Aurora
// included, to package purge. It is the twin of package sqlserver, file by file:
//
//	conn.go    opens and closes a connection
//	cut.go     windows: looks for expired rows, counts them, cuts batches
//	delete.go  deletes batches, several on their way at a time
//	limits.go  how long the server lets a statement run, and how it plans it
//	errors.go  says what an error means and what to do about it
//	facts.go   what must be known before anything is deleted
//	check.go   what an operator should know
//	sql.go     every statement that is sent
package postgres

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

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
	// connectTimeout bounds everything up to the end of the log-in. A host that
	// a security group hides answers nothing at all.
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
	// ConnectTimeout is how long a server is waited for that takes connections and
	// does not serve yet.
	ConnectTimeout time.Duration
	// Longest bounds a statement that deletes, unless its batch is Patient; 0 is no
	// bound but the time left.
	Longest time.Duration
}

// Open implements [purge.Engine].
func (s Server) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	c := &conn{server: s, database: database, table: table.Lower(), prepared: map[string]*pgconn.StatementDescription{}}
	if err := c.open(ctx, lock); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// conn implements [purge.Conn], [purge.Pipeliner] and [purge.WriteCounter].
type conn struct {
	server   Server
	database string
	table    purge.Table
	pg       *pgx.Conn
	locked   bool
	facts    facts
	limits   *limits // nil is none set
	prepared map[string]*pgconn.StatementDescription
	began    time.Time // the last statement
	canceled int       // statements in turn, by somebody else
}

// Databases lists all databases of the server, by way of the one named.
func (s Server) Databases(ctx context.Context, via string) ([]purge.Database, error) {
	c := &conn{server: s, database: via}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
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

func (c *conn) connect(ctx context.Context) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	c.pg, err = pgx.ConnectConfig(ctx, config)
	return c.explain("connect", err)
}

func (c *conn) open(ctx context.Context, lock bool) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
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
	if !lock {
		return nil
	}
	if err := c.pg.QueryRow(ctx, sqlLock).Scan(&c.locked); err != nil {
		return c.explain("lock the database", err)
	}
	if !c.locked {
		return purge.ErrAlreadyRunning
	}
	return nil
}

// config builds the connection's settings field by field: a password may hold
// any character, so no connection string is put together.
func (c *conn) config() (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("the PG* environment variables cannot be used: %s", redact.Text(err.Error()))
	}
	config.Host, config.Port, config.Database = c.server.Host, c.server.Port, c.database
	config.User, config.Password = c.server.User.Reveal(), c.server.Password.Reveal()
	config.TLSConfig, config.Fallbacks = c.server.TLS, nil
	config.RuntimeParams = map[string]string{"application_name": "edfi-token-purge"}
	config.ConnectTimeout = connectTimeout
	// One round trip a statement; those that come often are prepared by hand.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelTimeout}
	}
	return config, nil
}

// Close implements [purge.Conn].
func (c *conn) Close() {
	if c.pg == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	// A server under load ends a session some time after its client has left. A
	// run that follows at once must not meet the lock.
	if c.locked && !c.pg.IsClosed() {
		c.pg.Exec(ctx, sqlUnlock) //nolint:errcheck // it goes with the session at the latest
	}
	c.pg.Close(ctx) //nolint:errcheck // nothing is at stake: every batch is committed
	// After a statement that was given up the driver keeps the socket for some
	// seconds, and the server with it the lock.
	c.pg.PgConn().Conn().Close() //nolint:errcheck // as above
}

// Facts implements [purge.Conn].
func (c *conn) Facts() purge.Facts {
	return purge.Facts{Now: c.facts.now.Time, Indexed: c.facts.indexed, Findings: c.facts.findings()}
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
