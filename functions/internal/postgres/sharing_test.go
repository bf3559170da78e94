package postgres

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
)

// sharing is a pooler that no package has: it lets its clients in with what the server
// said to its own log-in, the number of the process included, as pgagroal does.
type sharing struct {
	sessions []*pgconn.HijackedConn
	made     bool // a number is made up
	inTurns  bool
	session  bool // a client keeps its session, else each transaction has one
	lost     int  // the nth client is thrown out at its first statement
	deaf     bool // what the server says unasked waits for the client's next statement, as with pgcat

	mu   sync.Mutex
	free *sync.Cond
	used map[*pgconn.HijackedConn]bool
	nth  int
	let  int // clients
}

// share opens so many sessions of the database, and returns the way through the pooler.
func share(t *testing.T, s stage, database string, sessions int, p *sharing) Server {
	t.Helper()
	p.used, p.free = map[*pgconn.HijackedConn]bool{}, sync.NewCond(&p.mu)
	for range sessions {
		conn := client(t, s.server(), database).PgConn()
		h, err := conn.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Conn.Close() })
		p.sessions = append(p.sessions, h)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); p.serve(conn) }()
		}
	}()
	through := s.server()
	through.Host, through.Port = "127.0.0.1", uint16(l.Addr().(*net.TCPAddr).Port)
	return through
}

// acquire returns a session that nobody else has.
func (p *sharing) acquire() *pgconn.HijackedConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for i := range p.sessions {
			if p.inTurns {
				i = (i + p.nth) % len(p.sessions)
			}
			if h := p.sessions[i]; !p.used[h] {
				p.used[h] = true
				p.nth++
				return h
			}
		}
		p.free.Wait()
	}
}

func (p *sharing) release(h *pgconn.HijackedConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[h] = false
	p.free.Broadcast()
}

// message returns one of the protocol.
func message(kind byte, parts ...any) []byte {
	body := []byte{}
	for _, part := range parts {
		switch part := part.(type) {
		case uint32:
			body = binary.BigEndian.AppendUint32(body, part)
		case []byte:
			body = append(body, part...)
		case string:
			body = append(append(body, part...), 0)
		}
	}
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
}

// nextMessage reads a message.
func nextMessage(from io.Reader) ([]byte, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
	_, err := io.ReadFull(from, body)
	return append(head, body...), err
}

// serve logs a client in, whoever it is, and serves it.
func (p *sharing) serve(conn net.Conn) {
	length := make([]byte, 4)
	if _, err := io.ReadFull(conn, length); err != nil {
		return
	}
	if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(length))-4); err != nil {
		return
	}
	h := p.acquire()
	if !p.session {
		p.release(h)
	}
	hello := message('R', uint32(0))
	for name, value := range h.ParameterStatuses {
		hello = append(hello, message('S', name, value)...)
	}
	pid := h.PID
	if p.made {
		pid = 1<<30 + pid
	}
	hello = append(append(hello, message('K', pid, h.SecretKey)...), message('Z', []byte("I"))...)
	if _, err := conn.Write(hello); err != nil {
		return
	}
	p.mu.Lock()
	p.let++
	out := p.let == p.lost
	p.mu.Unlock()
	if out {
		p.release(h)
		if _, err := nextMessage(conn); err == nil {
			conn.Write(message('E', "SFATAL", "VFATAL", "C08P01", "Msuccessfully sent cancel request", "")) //nolint:errcheck // the client may have left
		}
		return
	}
	if p.session && !p.deaf {
		defer p.release(h)
		p.pass(conn, h)
		return
	}
	if !p.session {
		h = nil
	}
	for {
		ended := p.transaction(conn, &h)
		if h != nil && (ended || !p.session) {
			p.release(h)
			h = nil
		}
		if ended {
			return
		}
	}
}

// pass passes on all that either side says, until the client leaves.
func (p *sharing) pass(conn net.Conn, h *pgconn.HijackedConn) {
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		for {
			m, err := nextMessage(h.Conn)
			if err != nil || m[0] == 'D' && strings.Contains(string(m), lastWord) {
				return
			}
			conn.Write(m) //nolint:errcheck // the client may have left
		}
	}()
	for {
		m, err := nextMessage(conn)
		if err != nil || m[0] == 'X' {
			break
		}
		if _, err := h.Conn.Write(m); err != nil {
			break
		}
	}
	h.Conn.Write(append(message('S'), message('Q', "SELECT '"+lastWord+"'")...)) //nolint:errcheck // the read says it
	<-ready
	for { // the end of the answer
		if m, err := nextMessage(h.Conn); err != nil || m[0] == 'Z' {
			return
		}
	}
}

// lastWord is what a session is asked for when its client has left.
const lastWord = "nothing is under way"

// transaction serves the client until no transaction is open.
func (p *sharing) transaction(conn net.Conn, h **pgconn.HijackedConn) (ended bool) {
	for {
		m, err := nextMessage(conn)
		if err != nil || m[0] == 'X' {
			return true
		}
		if *h == nil {
			*h = p.acquire()
		}
		if _, err := (*h).Conn.Write(m); err != nil {
			return true
		}
		if m[0] != 'Q' && m[0] != 'S' {
			continue
		}
		for {
			m, err := nextMessage((*h).Conn)
			if err != nil {
				return true
			}
			if _, err := conn.Write(m); err != nil {
				return true
			}
			if m[0] == 'Z' {
				if m[5] == 'I' {
					return false
				}
				break
			}
		}
	}
}

// ask returns what each of the sessions says to sql, once its client has left it.
func (p *sharing) ask(t *testing.T, sql string) (said string) {
	t.Helper()
	for range p.sessions {
		conn, err := pgconn.Construct(p.acquire())
		if err != nil {
			t.Fatal(err)
		}
		results, err := conn.Exec(t.Context(), sql).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range results[len(results)-1].Rows {
			said += string(row[0])
		}
	}
	for _, h := range p.sessions {
		p.release(h)
	}
	return said
}

func TestAPoolerThatPassesOnTheNumberOfAProcessIsFoundOut(t *testing.T) {
	s := newStage(t, "purge_true_numbers", "")
	for _, inTurns := range []bool{false, true} {
		for _, session := range []bool{false, true} {
			t.Run(fmt.Sprintf("in turns %t, session %t", inTurns, session), func(t *testing.T) {
				t.Parallel()
				db := s.create(t)
				db.Insert(t, db.Now(t).Add(-time.Hour))
				p := &sharing{inTurns: inTurns, session: session}
				through := share(t, s, db.name, 3, p)
				time.Sleep(2 * mostDelay) // by then the sessions are older than any log-in
				for _, action := range []purge.Action{purge.DryRun, purge.Check, purge.Purge} {
					r := act(t, through, db.name, action)
					if refused := r.Status == purge.Failed && strings.Contains(text(r.Findings), "transaction-pooler"); refused == session || session && r.Status != purge.Complete {
						t.Errorf("%s: %+v", action, r)
					}
				}
				if found := p.ask(t, leftovers); found != "" {
					t.Error("left behind: ", found)
				}
			})
		}
	}
}

// What others have set in a session, or prepared, is theirs.
func TestASessionOfAPoolIsLeftAsItWas(t *testing.T) {
	s := newStage(t, "purge_left_alone", "")
	db := s.create(t)
	for range 5 {
		db.Insert(t, db.Now(t).Add(-time.Hour))
	}
	p := &sharing{session: true, made: true}
	through := share(t, s, db.name, 4, p)
	p.ask(t, `SET search_path = pg_temp, public; SET lock_timeout = '7s'; SET statement_timeout = '1min'; SET synchronous_commit = local; SET work_mem = '7MB';
SET "TimeZone" = 'Asia/Tokyo'; SET "DateStyle" = 'German'; SET app.tenant = 'one'; LISTEN other; PREPARE other AS SELECT 1; SELECT pg_advisory_lock_shared(5, 6)`)
	const state = `SELECT (SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE source = 'session' OR setting <> reset_val) || current_setting('app.tenant')
    || (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_prepared_statements) || (SELECT string_agg(channel, ' ') FROM pg_listening_channels() AS channel)
    || (SELECT string_agg(classid || ' ' || objid, ' ') FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())`
	before := p.ask(t, state)
	for _, want := range []int64{5, 0} {
		if r := run(t, through, db.name); r.Status != purge.Complete || r.DeletedRows != want {
			t.Errorf("%+v", r)
		}
	}
	if after := p.ask(t, state); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// One of the connections that a pool is compared by may end for somebody else's sake.
func TestAConnectionThatAPoolerEndsWhileItIsComparedIsOpenedAnew(t *testing.T) {
	s := newStage(t, "purge_thrown_out", "")
	db := s.create(t)
	db.Insert(t, db.Now(t).Add(-time.Hour))
	through := share(t, s, db.name, 4, &sharing{session: true, made: true, lost: 2})
	if r := run(t, through, db.name); r.Status != purge.Complete || r.DeletedRows != 1 {
		t.Errorf("%+v", r)
	}
}

// A pooler that keeps notifications back can't be told from one that shares sessions.
func TestAPoolerThatPassesNoNotificationOnIsRefusedAsThat(t *testing.T) {
	s := newStage(t, "purge_deaf_pool", "")
	db := s.create(t)
	p := &sharing{session: true, made: true, deaf: true}
	through := share(t, s, db.name, 4, p)
	if r := run(t, through, db.name); r.Status != purge.Failed || !strings.Contains(text(r.Findings), "error transaction-pooler: a pooler in between passes no notification on") {
		t.Errorf("%+v", r)
	}
	if found := p.ask(t, leftovers); found != "" {
		t.Error("left behind: ", found)
	}
}
