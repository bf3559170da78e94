// Package sqlserver adapts Ed-Fi's token table on SQL Server 2017 and later to
// package purge. All its SQL stands in sql.go; it runs on Babelfish as well.
package sqlserver

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/msdsn"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// What holds where nothing else is said.
const (
	DefaultPort  = 1433
	DefaultBatch = 2000 // rows; each of them locks its entry in each index, and the page that it is on
	MostBatch    = 4000 // rows; beyond, a statement locks the whole table
	MaxName      = 128  // UTF-16 units of a database's name
)

const (
	// connectTimeout bounds everything up to the end of the log-in. A host that
	// a security group hides answers nothing at all.
	connectTimeout = 8 * time.Second
	// openTimeout bounds the log-in and the first statements, which a server
	// compiles before it runs them: a busy one takes its time.
	openTimeout = 20 * time.Second
	// serverFirst is how long before the context's deadline the server is told to
	// give a statement up, where there is so much time: then the connection lives
	// on for the closing look.
	serverFirst = 250 * time.Millisecond
	// cancelGrace is how long a canceled statement may take to end before the
	// connection is dropped.
	cancelGrace = 2 * time.Second
)

// Server is a SQL Server and the login for it.
type Server struct {
	Host        string
	Port        uint16
	User        redact.Secret
	Password    redact.Secret
	TLS         *tls.Config   // nil is no TLS; verification is up to the caller
	LockTimeout time.Duration // longest wait for a lock
}

// Open implements [purge.Engine].
func (s Server) Open(ctx context.Context, database string, claim bool) (purge.Table, error) {
	t := &table{server: s, database: database}
	if err := t.open(ctx, claim); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// table implements [purge.Table].
type table struct {
	server   Server
	database string
	pool     *sql.DB // of the one connection
	conn     *sql.Conn
	wire     net.Conn // under conn
	claimed  bool
	secured  *tls.ConnectionState // nil is not at all
	facts    purge.Facts
	examined facts
	exact    bool // an expiration comes to the client as it is
	indexed  bool // an index finds rows by their expiration
	proven   bool // DELETE does remove rows
	limits   *limits
}

// Databases lists all databases of the server, by way of the one named.
func (s Server) Databases(ctx context.Context, via string) ([]purge.Database, error) {
	t := &table{server: s, database: via}
	defer t.Close()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := t.connect(ctx); err != nil {
		return nil, err
	}
	read, err := t.conn.QueryContext(ctx, sqlDatabases)
	if err != nil {
		return nil, t.explain("list the databases", err)
	}
	defer read.Close()
	var all []purge.Database
	for read.Next() {
		var d purge.Database
		if err := read.Scan(&d.Name, &d.Closed); err != nil {
			return nil, t.explain("list the databases", err)
		}
		all = append(all, d)
	}
	return all, t.explain("list the databases", read.Err())
}

func (t *table) connect(ctx context.Context) error {
	config, err := t.config()
	if err != nil {
		return err
	}
	connector := mssql.NewConnectorConfig(config)
	connector.Dialer = dialer{t}
	t.pool = sql.OpenDB(connector)
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if t.conn, err = t.pool.Conn(connecting); err != nil {
		return t.explain("connect", err)
	}
	deadline, _ := ctx.Deadline() // until the first statement with limits of its own
	return t.wire.SetDeadline(deadline)
}

func (t *table) open(ctx context.Context, claim bool) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := t.connect(ctx); err != nil {
		return err
	}
	f, err := t.examine(ctx)
	if err != nil {
		return err
	}
	if err := f.fault(t.database, claim); err != nil {
		return err
	}
	t.examined = f
	t.exact, t.indexed = f.exact, f.indexed
	t.facts = purge.Facts{Now: f.now, Findings: f.findings()}
	if !claim {
		return nil
	}
	var answer int
	if err := t.conn.QueryRowContext(ctx, sqlClaim).Scan(&answer); err != nil {
		return t.explain("claim the database", err)
	}
	switch {
	case answer == -1: // the time is up
		return purge.ErrAlreadyRunning
	case answer < 0:
		return fmt.Errorf("claim the database: sp_getapplock answers %d", answer)
	}
	t.claimed = true
	return nil
}

// config builds the connection's settings field by field: a password may hold
// any character, so no connection string is put together.
func (t *table) config() (msdsn.Config, error) {
	config, err := msdsn.Parse("")
	if err != nil {
		return config, errors.New("the driver refuses its own defaults")
	}
	config.Host, config.Port, config.Database = t.server.Host, uint64(t.server.Port), t.database
	config.User, config.Password = t.server.User.Reveal(), t.server.Password.Reveal()
	config.TLSConfig, config.Encryption = t.server.TLS, msdsn.EncryptionRequired
	if t.server.TLS == nil {
		config.Encryption = msdsn.EncryptionDisabled
	} else { // the driver keeps the connection to itself
		config.TLSConfig = t.server.TLS.Clone()
		config.TLSConfig.VerifyConnection = func(state tls.ConnectionState) error {
			t.secured = &state
			return nil
		}
	}
	config.AppName = "edfi-token-purge"
	config.DialTimeout = connectTimeout
	// Whether a statement may be sent again is for the loop to say.
	config.DisableRetry = true
	return config, nil
}

// dialer opens the wire. The driver does not look at the context during the
// handshakes, so the wire itself gives up in time.
type dialer struct{ *table }

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var plain net.Dialer
	wire, err := plain.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	d.wire = wire
	return wire, wire.SetDeadline(deadline)
}

// HostName makes the driver leave the look-up of the name to DialContext, which
// minds the context.
func (d dialer) HostName() string { return d.server.Host }

// Close implements [purge.Table].
func (t *table) Close() {
	if t.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		// A server under load ends a session some time after its client has left. A
		// run that follows at once must not meet the claim.
		if t.claimed {
			t.wire.SetDeadline(time.Now().Add(time.Second)) //nolint:errcheck // ctx says the same
			t.conn.ExecContext(ctx, sqlUnclaim)             //nolint:errcheck // it goes with the session at the latest
		}
		t.conn.Close() //nolint:errcheck // nothing is at stake: every batch is committed
	}
	if t.pool != nil {
		t.pool.Close() //nolint:errcheck // the same
	}
}

// Facts implements [purge.Table].
func (t *table) Facts() purge.Facts { return t.facts }

// rows is a [purge.Range]: the rows with from <= Expiration < to. Where byKey,
// only those of them with lower <= Id < upper, or up to the last Id of all.
type rows struct {
	from, to     time.Time
	byKey        bool
	lower, upper mssql.UniqueIdentifier
	most         int // rows of a batch
}

var (
	firstKey mssql.UniqueIdentifier
	lastKey  = mssql.UniqueIdentifier{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	}
)

// args are the parameters of a statement on r.
func (r rows) args(more ...any) []any {
	args := append(more, sql.Named("from", mssql.DateTime1(r.from)), sql.Named("to", mssql.DateTime1(r.to)))
	if r.byKey {
		args = append(args, sql.Named("lower", r.lower), sql.Named("upper", r.upper), sql.Named("last", r.upper == lastKey))
	}
	return args
}

// datetime is the last instant up to t that the type can hold: 300 of them make
// a second, and their milliseconds end in 0, 3 and 7.
func datetime(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Millisecond)
	switch digit := time.Duration(t.Nanosecond() / 1e6 % 10); {
	case digit >= 7:
		return t.Add((7 - digit) * time.Millisecond)
	case digit >= 3:
		return t.Add((3 - digit) * time.Millisecond)
	default:
		return t.Add(-digit * time.Millisecond)
	}
}

// next is the instant after t.
func next(t time.Time) time.Time { return datetime(t.Add(4 * time.Millisecond)) }

// Expired implements [purge.Table].
func (t *table) Expired(limit time.Time) purge.Range {
	ever := time.Date(1753, time.January, 1, 0, 0, 0, 0, time.UTC)
	return rows{from: ever, to: next(datetime(limit))}
}

// Oldest implements [purge.Table].
func (t *table) Oldest(ctx context.Context, r purge.Range) (time.Time, purge.Range, error) {
	for _, look := range t.looks(r.(rows)) {
		var oldest sql.NullTime
		if err := t.row(ctx, &oldest, t.on(look, sqlOldest), look.args()...); err != nil {
			return time.Time{}, nil, t.explain("look for expired rows", err)
		}
		if !oldest.Valid {
			continue
		}
		found := r.(rows)
		if !found.byKey {
			found.from = t.before(oldest.Time)
		}
		return oldest.Time, found, nil
	}
	return time.Time{}, nil, nil
}

// looks splits r where its keys are those of its first expiration, and others
// follow.
func (t *table) looks(r rows) []rows {
	first := t.firstOnly(r)
	if !r.byKey || !t.indexed || first == r {
		return []rows{r}
	}
	return []rows{first, {from: first.to, to: r.to}}
}

// before is the latest instant that surely is not after the expiration which the
// server told as at. Babelfish keeps milliseconds, and tells the nearest tick.
func (t *table) before(at time.Time) time.Time {
	if t.exact {
		return at
	}
	return datetime(at.Add(-time.Millisecond))
}

// firstOnly is r without the expirations after its first one.
func (t *table) firstOnly(r rows) rows {
	end := next(r.from)
	if !t.exact { // up to what may have been told as the first
		end = next(end)
	}
	if end.Before(r.to) {
		r.to = end
	}
	return r
}

// Count implements [purge.Table].
func (t *table) Count(ctx context.Context, r purge.Range) (int64, error) {
	var count int64
	err := t.row(ctx, &count, sqlCount, r.(rows).args()...)
	return count, t.explain("count expired rows", err)
}

// Writes implements [purge.Table]: SQL Server tells a login without further rights
// nothing of others.
func (t *table) Writes(context.Context) (int64, error) { return 0, nil }

// Next implements [purge.Table]: a batch ends where row n+1 begins.
func (t *table) Next(ctx context.Context, r purge.Range, n int) (purge.Batch, purge.Range, error) {
	part := r.(rows)
	part.most = min(n, MostBatch)
	if part.byKey || !t.indexed {
		return t.nextByKey(ctx, part)
	}
	var end time.Time
	err := t.row(ctx, &end, sqlEnd, part.args(sql.Named("n", part.most))...)
	switch start := t.before(end); {
	case errors.Is(err, sql.ErrNoRows): // n rows at most
		return purge.Batch{Rows: part}, nil, nil
	case err != nil:
		return purge.Batch{}, nil, t.explain("find the next batch", err)
	case start.After(part.from):
		return purge.Batch{Rows: rows{from: part.from, to: start, most: part.most}}, rows{from: start, to: part.to}, nil
	default: // more than n rows share one expiration: their key tells them apart
		return t.nextByKey(ctx, part)
	}
}

// nextByKey is Next by key instead of expiration. Where an index finds rows by
// their expiration it stays with the first one, else it goes over all.
func (t *table) nextByKey(ctx context.Context, part rows) (purge.Batch, purge.Range, error) {
	if !part.byKey {
		part.byKey, part.lower, part.upper = true, firstKey, lastKey
	}
	batch, rest := part, part
	if t.indexed {
		batch = t.firstOnly(part)
	}
	err := t.row(ctx, &batch.upper, t.on(batch, sqlEndByKey), batch.args(sql.Named("n", batch.most))...)
	switch {
	case errors.Is(err, sql.ErrNoRows): // n rows at most
		if batch.to.Before(part.to) {
			return purge.Batch{Rows: batch}, rows{from: batch.to, to: part.to}, nil
		}
		return purge.Batch{Rows: batch}, nil, nil
	case err != nil:
		return purge.Batch{}, nil, t.explain("find the next batch", err)
	default:
		rest.lower = batch.upper
		return purge.Batch{Rows: batch}, rest, nil
	}
}

// on answers sql for the rows of part.
func (t *table) on(part rows, sql string) string {
	switch {
	case !part.byKey:
		return sql
	case t.indexed && t.exact && part.to.Equal(next(part.from)):
		return strings.ReplaceAll(sql, sqlWindow, sqlByKeyOfOne)
	default:
		return strings.ReplaceAll(sql, sqlWindow, sqlByKey)
	}
}

// Delete implements [purge.Table].
func (t *table) Delete(ctx context.Context, batches []purge.Range, answer func(int64, error)) {
	for _, batch := range batches {
		answer(t.delete(ctx, batch.(rows)))
	}
}

func (t *table) delete(ctx context.Context, part rows) (int64, error) {
	statement := sqlDelete
	if !t.proven {
		statement = sqlDeleteProving
	}
	ctx, cancel, err := t.begin(ctx)
	if err != nil {
		return 0, t.explain("delete", err)
	}
	defer cancel()
	// The server can't tell by itself that the time is over, and one that is told
	// may have deleted already. Nothing is committed here without its count.
	tx, err := t.conn.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return 0, t.explain("delete", late(ctx, err))
	}
	defer tx.Rollback() //nolint:errcheck // where it was not committed, the server does the same
	// An output parameter and not an answer: a trigger may have answers of its own.
	var deleted int64
	_, err = tx.ExecContext(ctx, t.on(part, statement), part.args(sql.Named("most", part.most), sql.Named("deleted", sql.Out{Dest: &deleted}))...)
	if err != nil {
		return 0, t.explain("delete", late(ctx, err))
	}
	if err = t.explain("delete", tx.Commit()); errors.Is(err, purge.ErrLost) {
		return deleted, err // it may have come through
	} else if err != nil {
		return 0, err
	}
	t.proven = t.proven || deleted > 0
	return deleted, nil
}

// row reads the one value that sql answers into dest.
func (t *table) row(ctx context.Context, dest any, sql string, args ...any) error {
	ctx, cancel, err := t.begin(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	return late(ctx, t.conn.QueryRowContext(ctx, sql, args...).Scan(dest))
}

// late answers ErrTimeout for an error that came of the end of ctx.
func late(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", purge.ErrTimeout, ctx.Err())
	}
	return err
}

// limits is how long the server lets a statement wait.
type limits struct {
	lock     time.Duration
	deadline time.Time
}

// begin makes ready for a statement: the server will be told to give it up in
// time, and gives up earlier where it waits for a lock. Most calls find all in
// place and cost nothing.
func (t *table) begin(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if ctx.Err() != nil { // the driver would send it all the same
		return nil, nil, purge.ErrTimeout
	}
	deadline, limited := ctx.Deadline()
	l := limits{t.server.LockTimeout, deadline}
	if !limited {
		return ctx, func() {}, t.limit(ctx, l, time.Time{})
	}
	left := time.Until(deadline)
	left -= min(serverFirst, left/4)
	if left < 8*time.Millisecond {
		return nil, nil, purge.ErrTimeout
	}
	l.lock = min(l.lock, left/10*9)
	// Not WithTimeout: the driver gives a connection up whose context ends by its
	// deadline, even where the server has confirmed the cancellation.
	inTime, cancel := context.WithCancel(context.WithoutCancel(ctx))
	timer, stop := time.AfterFunc(left, cancel), context.AfterFunc(ctx, cancel)
	end := func() { timer.Stop(); stop(); cancel() }
	if err := t.limit(inTime, l, deadline.Add(cancelGrace)); err != nil {
		err = late(inTime, err)
		end()
		return nil, nil, err
	}
	return inTime, end, nil
}

// limit has the server keep l, and ends the connection at drop: a network that
// swallows everything answers no cancellation either.
func (t *table) limit(ctx context.Context, l limits, drop time.Time) error {
	if err := t.wire.SetDeadline(drop); err != nil {
		return err
	}
	if have := t.limits; have != nil && have.deadline.Equal(l.deadline) && have.lock <= l.lock {
		return nil
	}
	if l.lock < t.server.LockTimeout { // less, so that it need not be set anew each time
		l.lock = l.lock / 4 * 3
	}
	_, err := t.conn.ExecContext(ctx, fmt.Sprintf(sqlLimits, milliseconds(l.lock))) // no parameter can stand here
	if err == nil {
		t.limits = &l
	}
	return err
}

func milliseconds(d time.Duration) int64 {
	return min(max(d.Milliseconds(), 1), 1<<31-1) // 0 would be no wait at all
}

// explain says what doing failed at, and for the errors that an operator can
// mend, how. It leaves out what may quote a row or the login: the user's name.
func (t *table) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	var (
		refused mssql.Error
		network net.Error
		say     = func(format string, args ...any) error { return fmt.Errorf(doing+": "+format, args...) }
	)
	switch {
	case errors.Is(err, purge.ErrTimeout):
		return err
	case errors.As(err, &refused):
		message := fmt.Sprintf("%s (error %d)", redact.Login(refused.Message, t.server.User, t.server.Password), refused.Number)
		switch number(refused) {
		case 1222, 1205, 3960, 601: // lock timeout, deadlock, snapshot conflict, rows that moved
			return say("%w: error %d", purge.ErrLocked, refused.Number)
		case 18456, 18470, 18486, 18487, 18488: // refused, disabled, locked, expired, to be changed
			return say("%w (error %d): check user name and password in the secret, and that the login is enabled", purge.ErrLogin, refused.Number)
		case 4060, 911:
			return purge.Unfit{Code: "no-database", Message: fmt.Sprintf("database %s does not exist on this server, or the login may not enter it", t.database)}
		case 229, 230:
			return say("%s: the login lacks a right, see infra/sqlserver/role.sql", message)
		case 3906, 3908, 978:
			return say("%s: this is a reader; use the writer's endpoint", message)
		case 596, 6005, 983, 976, 701, 1204, 8645, 40197, 40501, 40613, 49918: // killed, shutdown, fail-over, resources
			return say("%w: %s", purge.ErrLost, message)
		}
		if refused.Class >= 20 { // the server has ended the connection
			return say("%w: %s", purge.ErrLost, message)
		}
		return say("%s", message)
	}
	// The driver keeps but the text.
	if text := err.Error(); strings.Contains(text, "failed to verify certificate") {
		_, reason, _ := strings.Cut(text, "failed to verify certificate: ")
		return say("%s", purge.Unverified(reason))
	} else if strings.Contains(text, "server does not support encryption") {
		return say("server does not support encryption: turn it on there, or set DB_TLS=disable, which sends all in plaintext")
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout() || strings.Contains(err.Error(), os.ErrDeadlineExceeded.Error()) {
		return say("%w", purge.NoAnswer(t.wire != nil))
	}
	return say("%w: %s", purge.ErrLost, redact.Login(err.Error(), t.server.User, t.server.Password))
}

// number answers what SQL Server would call the error: the first of several, as
// 18456 follows 4060. Babelfish has one number for all that it has no other for.
func number(err mssql.Error) int32 {
	first := err
	if len(err.All) > 0 {
		first = err.All[0]
	}
	switch {
	case first.Number != 33557097:
		return first.Number
	case strings.Contains(first.Message, "due to lock timeout"):
		return 1222
	case strings.Contains(first.Message, "Cannot open database"):
		return 4060
	default:
		return first.Number
	}
}
