// Package postgres adapts Ed-Fi's token table on PostgreSQL 13 and later,
// Aurora included, to package purge. All its SQL stands in sql.go.
package postgres

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgtype"

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
	// serverFirst is how long before the context's deadline the server itself
	// gives a statement up, where there is so much time: then the connection lives
	// on for the closing look.
	serverFirst = 250 * time.Millisecond
	// cancelGrace is how long a canceled statement may take to end before the
	// connection is dropped.
	cancelGrace = 2 * time.Second
	// lookRows is about how many deleted rows one look may have to pass over:
	// their index entries stay until VACUUM comes, and a single look over a
	// million of them takes longer than any batch.
	lookRows = 50_000
	// emptiedRows is from how many deleted rows on, for each page of the table, a
	// look that reads the table itself is quicker than one over all those entries.
	emptiedRows = 40
	// lockedAhead is how often the longest wait for a lock must fit into the time
	// left, for a statement to be sent before the one ahead of it has ended.
	lockedAhead = 8
	// chunkPages is how many pages one statement on a physical range covers at
	// most, 8 MB, so that it stays short where few rows have expired.
	chunkPages = 1024
	// So many batches, and no more rows than that, are cut in one reading, which
	// takes the time of one batch's delete.
	aheadBatches = 8
	aheadRows    = 40_000
	// lastPage is the greatest number that a page can have.
	lastPage = 1<<32 - 2
	// listPages is the same for PostgreSQL 13, where each place is listed.
	listPages = 16
)

// errNoAnswer is for what ended without an error of its own.
var errNoAnswer = errors.New("the connection ended before the answer")

// Server is a PostgreSQL server and the login for it.
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
	t := &table{server: s, database: database, prepared: map[string]*pgconn.StatementDescription{}}
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
	conn     *pgx.Conn
	claimed  bool
	facts    purge.Facts
	examined facts
	oid      uint32
	indexed  bool               // an index finds rows by their expiration
	places   bool               // the role may tell rows apart by their place
	version  int                // 150004 is 15.4
	marks    []pgtype.Timestamp // about every lookRows rows, ascending
	unmarked int                // rows since the last mark
	cut      int64              // rows of all batches
	ahead    ahead
	limits   *limits // nil is none set
	prepared map[string]*pgconn.StatementDescription
	began    time.Time // the last statement
}

// Databases lists all databases of the server, by way of the one named.
func (s Server) Databases(ctx context.Context, via string) ([]purge.Database, error) {
	t := &table{server: s, database: via}
	defer t.Close()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := t.connect(ctx); err != nil {
		return nil, err
	}
	read, _ := t.conn.Query(ctx, sqlDatabases) // the error comes below
	all, err := pgx.CollectRows(read, func(row pgx.CollectableRow) (d purge.Database, err error) {
		return d, row.Scan(&d.Name, &d.Closed)
	})
	return all, t.explain("list the databases", err)
}

func (t *table) connect(ctx context.Context) error {
	config, err := t.config()
	if err != nil {
		return err
	}
	t.conn, err = pgx.ConnectConfig(ctx, config)
	return t.explain("connect", err)
}

func (t *table) open(ctx context.Context, claim bool) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
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
	t.oid, t.version, t.indexed, t.places = f.oid, f.version, f.indexed, f.selectAll && f.plain
	t.facts = purge.Facts{Now: f.now.Time, Findings: f.findings(t.places)}
	if !claim {
		return nil
	}
	var claimed bool
	if err := t.conn.QueryRow(ctx, sqlClaim).Scan(&claimed); err != nil {
		return t.explain("claim the database", err)
	}
	if !claimed {
		return purge.ErrAlreadyRunning
	}
	t.claimed = true
	return nil
}

// config builds the connection's settings field by field: a password may hold
// any character, so no connection string is put together.
func (t *table) config() (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("the PG* environment variables cannot be used: %s", redact.Text(err.Error()))
	}
	config.Host, config.Port, config.Database = t.server.Host, t.server.Port, t.database
	config.User, config.Password = t.server.User.Reveal(), t.server.Password.Reveal()
	config.TLSConfig, config.Fallbacks = t.server.TLS, nil
	config.RuntimeParams = map[string]string{"application_name": "edfi-token-purge"}
	config.ConnectTimeout = connectTimeout
	// One round trip a statement; those that come often are prepared by hand.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelGrace}
	}
	return config, nil
}

// Close implements [purge.Table].
func (t *table) Close() {
	if t.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// A server under load ends a session some time after its client has left. A
	// run that follows at once must not meet the claim.
	if t.claimed && !t.conn.IsClosed() {
		t.conn.Exec(ctx, sqlUnclaim) //nolint:errcheck // it goes with the session at the latest
	}
	t.conn.Close(ctx) //nolint:errcheck // nothing is at stake: every batch is committed
	// After a statement that was given up the driver keeps the socket for some
	// seconds, and the server with it the claim.
	t.conn.PgConn().Conn().Close() //nolint:errcheck // as above
}

// Facts implements [purge.Table].
func (t *table) Facts() purge.Facts { return t.facts }

// rows is a [purge.Range]: the rows with from <= expiration < to. Where
// physical, only those of them in lower <= ctid < upper.
type rows struct {
	from, to     pgtype.Timestamp
	physical     bool
	lower, upper pgtype.TID
	count        int64 // of a batch; 0 where it is not known
}

// args are the parameters of a statement on r.
func (r rows) args(more ...any) []any {
	args := []any{r.from, r.to}
	if r.physical {
		args = append(args, r.lower, r.upper)
	}
	return append(args, more...)
}

func timestamp(t time.Time) pgtype.Timestamp {
	return pgtype.Timestamp{Time: t.UTC(), Valid: true}
}

// next is the instant after t: expirations have microseconds.
func next(t pgtype.Timestamp) pgtype.Timestamp {
	return timestamp(t.Time.Add(time.Microsecond))
}

// Expired implements [purge.Table].
func (t *table) Expired(limit time.Time) purge.Range {
	ever := pgtype.Timestamp{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	return rows{from: ever, to: next(timestamp(limit.Truncate(time.Microsecond)))}
}

// Oldest implements [purge.Table].
func (t *table) Oldest(ctx context.Context, r purge.Range) (time.Time, purge.Range, error) {
	looks, err := t.looks(ctx, r.(rows))
	if err != nil {
		return time.Time{}, nil, t.explain("read the table's size", err)
	}
	var first pgtype.Timestamp
	for _, look := range looks {
		var oldest pgtype.Timestamp
		plan, sql, args := byIndex, sqlOldest, look.args()
		switch {
		case look.physical && t.readsRanges():
			plan, sql = byPlace, sqlOldestPhysical
		case look.physical: // a list of all places would be too long
			plan, args = inSequence, args[:2]
		case look.emptied:
			plan = inSequence
		}
		if err := t.row(ctx, plan, &oldest, sql, args...); err != nil {
			return time.Time{}, nil, t.explain("look for expired rows", err)
		}
		if oldest.Valid && (!first.Valid || before(oldest, first)) {
			first = oldest
		}
		if first.Valid && !look.emptied { // what comes later is younger
			break
		}
	}
	if !first.Valid {
		return time.Time{}, nil, nil
	}
	found := r.(rows)
	if !found.physical {
		found.from = first
	}
	return instant(first), found, nil
}

// look is a part of a range that one statement looks at.
type look struct {
	rows
	emptied bool // most of the table is deleted, so that reading it all is quicker
}

// looks splits r at the marks, so that no look passes over too many deleted
// rows. Where they are most of the table, it is split by place; or not at all, if
// the role may not tell places apart.
func (t *table) looks(ctx context.Context, r rows) (looks []look, err error) {
	if r.physical || !t.indexed {
		return []look{{rows: r}}, nil
	}
	if t.cut >= lookRows && r.from.InfinityModifier == pgtype.NegativeInfinity {
		pages, err := t.pages(ctx)
		switch {
		case err != nil:
			return nil, err
		case t.cut < emptiedRows*int64(pages):
		case !t.places || !t.readsRanges():
			return []look{{r, true}}, nil
		default:
			r.physical = true
			r.lower = page(0)
			for from := uint32(chunkPages); from < pages; from += chunkPages {
				r.upper = page(from)
				looks = append(looks, look{r, true})
				r.lower = r.upper
			}
			r.upper = page(lastPage) // of now
			return append(looks, look{r, true}), nil
		}
	}
	for _, mark := range t.marks {
		if before(r.from, mark) && before(mark, r.to) {
			looks = append(looks, look{rows: rows{from: r.from, to: mark}})
			r.from = mark
		}
	}
	return append(looks, look{rows: r}), nil
}

// pages answers how many the table has.
func (t *table) pages(ctx context.Context) (pages uint32, err error) {
	return pages, t.row(ctx, byIndex, &pages, sqlPages, t.oid)
}

func before(a, b pgtype.Timestamp) bool {
	return a.InfinityModifier == pgtype.NegativeInfinity || a.Time.Before(b.Time)
}

// instant answers t as a time; what is older than Go's year 1 is that year.
func instant(t pgtype.Timestamp) time.Time {
	if t.InfinityModifier != pgtype.Finite {
		return time.Time{}
	}
	return t.Time.UTC()
}

// Count implements [purge.Table].
func (t *table) Count(ctx context.Context, r purge.Range) (int64, error) {
	var count int64
	part := r.(rows)
	err := t.row(ctx, byIndex, &count, sqlCount, part.args()...)
	return count, t.explain("count expired rows", err)
}

// Writes implements [purge.Table].
func (t *table) Writes(ctx context.Context) (int64, error) {
	var count int64
	plan := byIndex
	if t.limits != nil { // which need not be set anew for this
		plan = t.limits.plan
	}
	err := t.row(ctx, plan, &count, sqlWrites)
	return count, t.explain("count transactions", err)
}

// Next implements [purge.Table]: a batch ends where row n+1 begins.
func (t *table) Next(ctx context.Context, r purge.Range, n int) (purge.Batch, purge.Range, error) {
	part := r.(rows)
	if part.physical || !t.indexed && t.places {
		return t.nextPhysical(ctx, part, n)
	}
	if !t.ahead.serves(part, n) {
		if err := t.readAhead(ctx, part, n); err != nil {
			return purge.Batch{}, nil, t.explain("find the next batch", err)
		}
	}
	if len(t.ahead.ends) == 0 {
		part.count = t.ahead.last
		return purge.Batch{Rows: part}, nil, nil
	}
	end := t.ahead.ends[0]
	t.ahead.ends, t.ahead.from = t.ahead.ends[1:], end
	switch {
	case end != part.from:
		t.mark(end, n)
		return purge.Batch{Rows: rows{from: part.from, to: end, count: int64(n)}}, rows{from: end, to: part.to}, nil
	case t.places: // more than n rows share one expiration: their place tells them apart
		return t.nextPhysical(ctx, part, n)
	default:
		after := next(end)
		return purge.Batch{Rows: rows{from: end, to: after}, Unbounded: true}, rows{from: after, to: part.to}, nil
	}
}

// ahead is where the next batches of n rows from an expiration on end.
type ahead struct {
	from, to pgtype.Timestamp
	n        int
	ends     []pgtype.Timestamp
	last     int64 // rows behind the ends; -1 is more than n
}

func (a ahead) serves(part rows, n int) bool {
	return a.n == n && a.from == part.from && a.to == part.to && (a.last >= 0 || len(a.ends) > 0)
}

func (t *table) readAhead(ctx context.Context, part rows, n int) error {
	most := max(1, min(aheadBatches, aheadRows/n))
	if !t.indexed { // each end costs a reading of the whole table
		most = 1
	}
	if err := t.begin(ctx, byIndex, sqlEnds, 1); err != nil {
		return err
	}
	t.ahead = ahead{from: part.from, to: part.to, n: n, last: -1}
	read, _ := t.conn.Query(ctx, sqlEnds, part.args(n, most)...) // the error comes last
	var end pgtype.Timestamp
	var rest int64
	_, err := pgx.ForEachRow(read, []any{&end, &rest}, func() error {
		if end.Valid {
			t.ahead.ends = append(t.ahead.ends, end)
		} else {
			t.ahead.last = rest
		}
		return nil
	})
	return err
}

func (t *table) mark(end pgtype.Timestamp, n int) {
	last := len(t.marks) - 1
	t.cut += int64(n)
	if t.unmarked += n; t.unmarked < lookRows || last >= 0 && !before(t.marks[last], end) {
		return
	}
	t.marks, t.unmarked = append(t.marks, end), 0
}

// nextPhysical is Next by place instead of expiration.
func (t *table) nextPhysical(ctx context.Context, part rows, n int) (purge.Batch, purge.Range, error) {
	if !part.physical { // from the first page to the last one of now
		pages, err := t.pages(ctx)
		if err != nil {
			return purge.Batch{}, nil, t.explain("read the table's size", err)
		}
		part.physical, part.lower, part.upper = true, page(0), page(pages)
	}
	part.count = 0
	batch, rest := part, part
	pages := uint32(chunkPages)
	if !t.readsRanges() {
		pages = listPages
	}
	if end := part.lower.BlockNumber + pages; end < part.upper.BlockNumber {
		batch.upper = page(end)
	}
	err := t.row(ctx, byPlace, &batch.upper, t.physical(sqlEndPhysical), batch.args(n)...)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return purge.Batch{}, nil, t.explain("find the next batch", err)
	}
	if err == nil {
		batch.count = int64(n)
		t.cut += batch.count
	}
	if rest.lower = batch.upper; rest.lower == rest.upper {
		return purge.Batch{Rows: batch}, nil, nil
	}
	return purge.Batch{Rows: batch}, rest, nil
}

// readsRanges tells whether the server has a plan for a range of places.
func (t *table) readsRanges() bool { return t.version >= 14_00_00 }

// physical answers sql, on a physical range, in the form that the server reads
// best.
func (t *table) physical(sql string) string {
	if t.readsRanges() {
		return sql
	}
	return strings.Replace(sql, "ctid >=", sqlPlaces+"ctid >=", 1)
}

func page(number uint32) pgtype.TID { return pgtype.TID{BlockNumber: number, Valid: true} }

// Delete implements [purge.Table].
func (t *table) Delete(ctx context.Context, batches []purge.Range, answer func(int64, error)) {
	for len(batches) > 0 {
		first, n := batches[0].(rows), 1
		for n < len(batches) && batches[n].(rows).physical == first.physical {
			n++
		}
		batches = batches[t.deleteAlike(ctx, batches[:n], answer):]
	}
}

// deleteAlike deletes batches that are all physical, or none, in a pipeline: each
// DELETE is followed by a Sync, which commits it, and one is always sent before
// the answer to the one ahead of it, so that the server need not wait for the
// link. It answers how many batches it got to before its limits had to be set
// anew.
func (t *table) deleteAlike(ctx context.Context, batches []purge.Range, answer func(int64, error)) int {
	plan, sql := byIndex, sqlDelete
	if batches[0].(rows).physical {
		plan, sql = byPlace, t.physical(sqlDeletePhysical)
	}
	flying := min(t.mostFlying(ctx), len(batches))
	failure := t.begin(ctx, plan, sql, flying)
	if failure != nil {
		for range batches {
			answer(0, t.explain("delete", failure))
		}
		return len(batches)
	}
	pipeline := t.conn.PgConn().StartPipeline(ctx)
	defer pipeline.Close() //nolint:errcheck // each statement has told its own
	var encoded pgx.ExtendedQueryBuilder
	sent := 0
	for answered := 0; ; answered++ {
		for failure == nil && sent < min(answered+flying, len(batches)) && (sent == 0 || t.limits.stand(time.Now())) {
			if failure = encoded.Build(t.conn.TypeMap(), t.prepared[sql], batches[sent].(rows).args()); failure == nil {
				pipeline.SendQueryStatement(t.prepared[sql], encoded.ParamValues, encoded.ParamFormats, encoded.ResultFormats)
				failure = pipeline.Sync()
			}
			sent++
		}
		if answered == sent {
			return sent
		}
		deleted, err := int64(0), failure
		if err == nil {
			deleted, err = committed(pipeline)
		}
		if err = t.explain("delete", err); errors.Is(err, purge.ErrLost) {
			deleted = batches[answered].(rows).count
		}
		answer(deleted, err)
		t.began = time.Now()
	}
}

// mostFlying answers how many statements may be with the server at once: two, where
// both end in time even if each meets a lock.
func (t *table) mostFlying(ctx context.Context) int {
	deadline, limited := ctx.Deadline()
	if limited && time.Until(deadline) < lockedAhead*t.server.LockTimeout {
		return 1
	}
	return 2
}

// committed reads the answer to a statement and to the Sync behind it.
func committed(pipeline *pgconn.Pipeline) (deleted int64, failure error) {
	for {
		switch result, err := pipeline.GetResults(); answer := result.(type) {
		case *pgconn.ResultReader:
			tag, err := answer.Close()
			deleted, failure = tag.RowsAffected(), err
		case *pgconn.PipelineSync:
			if failure != nil {
				return 0, failure
			}
			return deleted, nil
		default:
			var refused *pgconn.PgError
			if failure = cmp.Or(failure, err, errNoAnswer); !errors.As(err, &refused) {
				return 0, failure
			}
		}
	}
}

// row reads the one value that sql answers into dest. Preparing pays even where
// a statement comes but twice: planning looks at the end of the index, where the
// deleted entries are.
func (t *table) row(ctx context.Context, plan plan, dest any, sql string, args ...any) error {
	if err := t.begin(ctx, plan, sql, 1); err != nil {
		return err
	}
	return t.conn.QueryRow(ctx, sql, args...).Scan(dest)
}

// plan is how a statement is to read the table: what the planner must not choose
// is off for the time.
type plan struct{ index, sequence bool }

var (
	byIndex    = plan{index: true}
	byPlace    = plan{}
	inSequence = plan{sequence: true}
)

// limits is how long the server lets a statement run, and how it may plan it.
type limits struct {
	statement, lock time.Duration // 0 is no limit
	plan            plan
	atOnce          int // statements that share the time
	deadline        time.Time
	until           time.Time // the limits stand until then; zero is for ever
}

// stand tells whether the limits hold for a statement that is sent now.
func (l *limits) stand(now time.Time) bool { return l.until.IsZero() || !now.After(l.until) }

// begin makes ready for sql, of which so many may be with the server at once: the
// statement is prepared, and the server will give all of them up in time. Most
// calls find all in place and cost nothing.
func (t *table) begin(ctx context.Context, plan plan, sql string, atOnce int) error {
	deadline, _ := ctx.Deadline()
	now := time.Now()
	if l := t.limits; l == nil || l.plan != plan || l.atOnce < atOnce || !l.deadline.Equal(deadline) || !l.stand(now) {
		l = &limits{lock: t.server.LockTimeout, plan: plan, atOnce: atOnce, deadline: deadline}
		if !deadline.IsZero() {
			left := deadline.Sub(now)
			left -= min(serverFirst, left/4)
			if left < 8*time.Millisecond {
				return purge.ErrTimeout
			}
			// An eighth less than there is, so that the limits need not be set anew
			// until that eighth is over.
			l.statement, l.until = left/8*7/time.Duration(atOnce), now.Add(left/8)
			// The lock's time must be up first, else it looks like a slow statement.
			l.lock = min(l.lock, l.statement/10*9)
		}
		if _, err := t.conn.Exec(ctx, sqlLimits, milliseconds(l.statement), milliseconds(l.lock), onOff(plan.index), onOff(plan.sequence)); err != nil {
			return err
		}
		t.limits = l
	}
	if t.prepared[sql] == nil {
		statement, err := t.conn.Prepare(ctx, sql, sql)
		if err != nil {
			return err
		}
		t.prepared[sql] = statement
	}
	t.began = time.Now()
	return nil
}

func milliseconds(d time.Duration) string {
	if d > 0 {
		d = max(d, time.Millisecond) // 0 would be no limit
	}
	return strconv.FormatInt(min(d.Milliseconds(), 1<<31-1), 10)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// explain says what doing failed at, and for the errors that an operator can
// mend, how. It leaves out what may quote a row or the login: a message's
// detail and context, and the user's name.
func (t *table) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	var (
		refused *pgconn.PgError
		network net.Error
		say     = func(format string, args ...any) error { return fmt.Errorf(doing+": "+format, args...) }
	)
	switch {
	case errors.Is(err, purge.ErrTimeout):
		return err
	case errors.As(err, &refused):
		message := fmt.Sprintf("%s (SQLSTATE %s)", redact.Login(refused.Message, t.server.User, t.server.Password), refused.Code)
		switch refused.Code {
		case "55P03", "40P01", "40001": // lock not available, deadlock, serialization
			return say("%w: SQLSTATE %s", purge.ErrLocked, refused.Code)
		case "57014": // canceled: by our own limit, or by somebody
			if t.limits == nil || t.limits.statement == 0 || time.Since(t.began) < t.limits.statement/10*9 {
				return say("%s: another session canceled the statement", message)
			}
			return say("%w: SQLSTATE %s", purge.ErrTimeout, refused.Code)
		case "28P01", "28000":
			if strings.Contains(refused.Message, "pg_hba.conf") { // which is asked before the password
				return purge.Unfit{Code: "no-access", Message: fmt.Sprintf("pg_hba.conf doesn't let the login into database %s (SQLSTATE %s): let it in there; or, if it says so for a lack of encryption, set DB_TLS to verify-full", t.database, refused.Code)}
			}
			return say("%w (SQLSTATE %s): check user name and password in the secret", purge.ErrLogin, refused.Code)
		case "3D000":
			return purge.Unfit{Code: "no-database", Message: fmt.Sprintf("database %s does not exist on this server", t.database)}
		case "42501":
			if t.conn == nil {
				return purge.Unfit{Code: "no-access", Message: fmt.Sprintf("the login may not connect to database %s (SQLSTATE %s): run infra/postgres/role.sql there", t.database, refused.Code)}
			}
			return say("%s: the role lacks a right, see infra/postgres/role.sql", message)
		case "25006":
			return say("%s: use the writer's endpoint, not a reader's; on the writer, default_transaction_read_only is on", message)
		}
		switch refused.Code[:2] {
		case "08", "57", "53": // connection, operator's intervention, resources
			return say("%w: %s", purge.ErrLost, message)
		}
		return say("%s", message)
	}
	// What a driver wraps around an error names user and database.
	var connecting *pgconn.ConnectError
	if errors.As(err, &connecting) {
		err = connecting.Unwrap()
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return say("%s", purge.Unverified(certificate.Err.Error()))
	}
	if strings.Contains(err.Error(), "server refused TLS connection") { // an error that pgx has no name for
		return say("server refused TLS connection: turn TLS on there (ssl = on), or set DB_TLS=disable, which sends all in plaintext")
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout() {
		return say("%w", purge.NoAnswer(!strings.Contains(err.Error(), "dial error"))) // as above
	}
	return say("%w: %s", purge.ErrLost, redact.Login(err.Error(), t.server.User, t.server.Password))
}
