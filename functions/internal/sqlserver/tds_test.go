package sqlserver

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf16"
)

// standIn speaks as much of SQL Server's protocol, TDS 7.4, as the adapter needs:
// every message to the client is what answer makes of the statement.
type standIn struct {
	listener net.Listener
	refuse   []byte      // the answer to a log-in instead of an acknowledgement
	tls      *tls.Config // nil is a server without encryption
	strict   bool        // encrypts from the first byte
	alert    byte        // what it ends a handshake with; 0 is nothing
	silent   bool        // accepts connections and says nothing
	answer   func(kind string) []byte
	login    func(nth int32) []byte // the answer to the nth log-in; nil is an acknowledgement

	came atomic.Int32 // log-ins

	mu   sync.Mutex
	sent []string // kinds of statements that came
}

// Kinds of statements that are not named by a part of their text.
const (
	begin     = "begin transaction"
	commit    = "commit"
	rollback  = "rollback"
	attention = "attention"
)

// kinds names statements by a part of them that is in no other, the most telling
// first.
var kinds = []struct{ part, kind string }{
	{"AS version", "version"},
	{"'Collation'", "collation"},
	{"AS matching", "matching"},
	{"AS differs", "differs"},
	{"SERVERPROPERTY", "check"},
	{"is_instead_of_trigger", "triggers"},
	{"sys.foreign_keys", "references"},
	{"sys.sql_expression_dependencies", "burdens"},
	{"sys.dm_tran_locks", "holders"},
	{"VIEW SERVER STATE", "may see holders"},
	{"user_access_desc", "state"},
	{"AS issued", "issued"},
	{"AS one", "any"},
	{"TOP (0)", "exists"},
	{"SHOW_STATISTICS", "statistics"},
	{"BEGIN TRANSACTION", "rehearse"},
	{"@@TRANCOUNT > 0", "undo"},
	{"allocation_units", "pages"},
	{"sysjobs", "jobs"},
	{"SYSDATETIMEOFFSET", "clock"},
	{"GETUTCDATE", "facts"},
	{"sp_getapplock", "lock"},
	{"sp_releaseapplock", "unlock"},
	{"SET LOCK_TIMEOUT", "limits"},
	{"DELETE TOP", "delete"},
	{"OFFSET", "end"},
	{"ROW_NUMBER", "end"},
	{"COUNT(*) FROM dbo.ClientAccessTokens WITH (NOLOCK)", "held"},
	{"MIN(Expiration)", "oldest"},
	{"COUNT_BIG", "count"},
	{"sys.databases", "databases"},
}

// hangUp is the answer that ends the connection; noAnswer is none.
var (
	hangUp   = []byte("hang up")
	noAnswer = []byte("no answer")
)

func newStandIn(t *testing.T, s *standIn) *standIn {
	t.Helper()
	var err error
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.listener.Close() })
	go s.accept()
	return s
}

func (s *standIn) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		go s.serve(conn)
	}
}

func (s *standIn) port() uint16 { return uint16(s.listener.Addr().(*net.TCPAddr).Port) }

// statements returns the kinds of statements that came, and forgets them.
func (s *standIn) statements() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := s.sent
	s.sent = nil
	return sent
}

func (s *standIn) note(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, kind)
}

func (s *standIn) serve(conn net.Conn) {
	defer conn.Close()
	if s.silent {
		io.Copy(io.Discard, conn) //nolint:errcheck // until the client gives up
		return
	}
	if s.strict && s.alert != 0 {
		conn.Read(make([]byte, 4096))                    //nolint:errcheck // the client would say
		conn.Write([]byte{0x15, 3, 3, 0, 2, 2, s.alert}) //nolint:errcheck // the same
		return
	}
	if s.strict {
		secured := tls.Server(conn, s.tls)
		if secured.Handshake() != nil {
			return
		}
		s.note("handshake")
		conn = secured
	}
	for {
		kind, body, err := readMessage(conn)
		if err != nil {
			return
		}
		switch kind {
		case 0x12:
			if s.prelogin(conn); (s.tls != nil || s.alert != 0) && !s.strict {
				return
			}
		case 0x10:
			s.note("login")
			refuse, nth := s.refuse, s.came.Add(1)
			if s.login != nil {
				refuse = s.login(nth)
			}
			switch {
			case bytes.Equal(refuse, noAnswer):
				io.Copy(io.Discard, conn) //nolint:errcheck // until the client gives up
				return
			case bytes.Equal(refuse, hangUp):
				return
			case refuse != nil:
				writeMessage(conn, refuse)
				return
			}
			writeMessage(conn, append(loginAck(), done(0)...))
		case 0x06:
			s.note(attention)
			if !bytes.Equal(s.answer(attention), noAnswer) {
				writeMessage(conn, done(0x20))
			}
		case 0x0e:
			if !s.reply(conn, map[byte]string{5: begin, 7: commit, 8: rollback}[body[headers(body)]]) {
				return
			}
		case 0x01, 0x03:
			if !s.reply(conn, kindOf(body)) {
				return
			}
		}
	}
}

// prelogin says whether the server encrypts. One that does goes no further than the
// handshake.
func (s *standIn) prelogin(conn net.Conn) {
	encryption := byte(2) // not supported
	if s.tls != nil || s.alert != 0 {
		encryption = 1
	}
	// VERSION and ENCRYPTION: option, offset, length; an end; their values.
	writeMessage(conn, []byte{0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xff, 16, 0, 0, 0, 0, 0, encryption})
	if s.alert != 0 {
		readMessage(conn)                                                  //nolint:errcheck // the client would say
		(&wrapped{Conn: conn}).Write([]byte{0x15, 3, 3, 0, 2, 2, s.alert}) //nolint:errcheck // the same
		return
	}
	if s.tls != nil && !s.strict && tls.Server(&wrapped{Conn: conn}, s.tls).Handshake() == nil {
		s.note("handshake")
	}
}

func (s *standIn) reply(conn net.Conn, kind string) bool {
	s.note(kind)
	answer := s.answer(kind)
	if answer == nil {
		switch kind {
		case begin:
			answer = append([]byte{0xe3, 11, 0, 8, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0}, done(0)...)
		case commit:
			answer = append([]byte{0xe3, 11, 0, 9, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8}, done(0)...)
		case rollback:
			answer = append([]byte{0xe3, 11, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8}, done(0)...)
		default:
			answer = done(0)
		}
	}
	if bytes.Equal(answer, hangUp) {
		return false
	}
	if !bytes.Equal(answer, noAnswer) {
		writeMessage(conn, answer)
	}
	return true
}

// wrapped carries the handshake of TLS in messages of the kind that came before.
type wrapped struct {
	net.Conn
	rest []byte
}

func (w *wrapped) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		var err error
		if _, w.rest, err = readMessage(w.Conn); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

func (w *wrapped) Write(p []byte) (int, error) {
	head := []byte{0x12, 1, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(head[2:], uint16(len(p)+8))
	_, err := w.Conn.Write(append(head, p...))
	return len(p), err
}

// readMessage reads the packets of one message.
func readMessage(conn net.Conn) (kind byte, body []byte, err error) {
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(conn, head); err != nil {
			return 0, nil, err
		}
		packet := make([]byte, int(binary.BigEndian.Uint16(head[2:]))-8)
		if _, err := io.ReadFull(conn, packet); err != nil {
			return 0, nil, err
		}
		if body = append(body, packet...); head[1]&1 == 1 { // the last one
			return head[0], body, nil
		}
	}
}

func writeMessage(conn net.Conn, body []byte) {
	head := []byte{4, 1, 0, 0, 0, 0, 1, 0}
	binary.BigEndian.PutUint16(head[2:], uint16(len(body)+8))
	conn.Write(append(head, body...)) //nolint:errcheck // the client would say
}

// headers is the length of what stands before a request.
func headers(body []byte) uint32 { return binary.LittleEndian.Uint32(body) }

func kindOf(body []byte) string {
	for _, k := range kinds {
		if bytes.Contains(body, ucs2(k.part)) {
			return k.kind
		}
	}
	return "unknown"
}

func ucs2(s string) []byte {
	var b []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}

// short is a text with its length in one byte.
func short(s string) []byte { return append([]byte{byte(len(s))}, ucs2(s)...) }

func loginAck() []byte {
	body := append([]byte{1, 0x74, 0, 0, 4}, short("SQL Server")...)
	body = append(body, 16, 0, 0, 0)
	return append(binary.LittleEndian.AppendUint16([]byte{0xad}, uint16(len(body))), body...)
}

func done(status uint16) []byte { return doneOf(0xfd, status, 0) }

func doneOf(token byte, status uint16, rows uint64) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{token}, status)
	b = binary.LittleEndian.AppendUint16(b, 0)
	return binary.LittleEndian.AppendUint64(b, rows)
}

// failure is an error of the server.
func failure(number int32, class byte, text string) []byte { return failureIn("", number, class, text) }

// failureIn is one that is raised in a procedure or trigger.
func failureIn(procedure string, number int32, class byte, text string) []byte {
	body := binary.LittleEndian.AppendUint32(nil, uint32(number))
	body = append(body, 1, class)
	body = binary.LittleEndian.AppendUint16(body, uint16(len(text)))
	body = append(body, ucs2(text)...)
	body = append(body, short("server")...)
	body = append(body, short(procedure)...)
	body = binary.LittleEndian.AppendUint32(body, 1)
	token := binary.LittleEndian.AppendUint16([]byte{0xaa}, uint16(len(body)))
	return append(append(token, body...), done(2)...)
}

// row is an answer of one row; a nil is an instant that there is none of.
func row(values ...any) []byte { return rows(values) }

// rows is an answer of several rows of the same types.
func rows(all ...[]any) []byte {
	meta := binary.LittleEndian.AppendUint16([]byte{0x81}, uint16(len(all[0])))
	var data []byte
	for n, values := range all {
		data = append(data, 0xd1)
		for i, value := range values {
			typed, cell := cell(value)
			if n == 0 {
				meta = append(append(meta, typed...), short(fmt.Sprint("c", i))...)
			}
			data = append(data, cell...)
		}
	}
	return append(append(meta, data...), doneOf(0xfd, 0x10, uint64(len(all)))...)
}

// more is an answer that others follow.
func more(answer []byte) []byte {
	end := len(answer) - len(done(0))
	return append(answer[:end:end], doneOf(0xff, 0x11, 1)...)
}

// rowless is an answer of no row.
func rowless() []byte {
	typed, _ := cell(time.Time{})
	column := join(typed, short("c"))
	return join([]byte{0x81, 2, 0}, column, column, done(0x10))
}

func cell(value any) (typed, data []byte) {
	typed = []byte{0, 0, 0, 0, 1, 0}
	switch v := value.(type) {
	case nil:
		return append(typed, 0x6f, 8), []byte{0}
	case time.Time:
		since := v.Sub(time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC))
		data = binary.LittleEndian.AppendUint32([]byte{8}, uint32(since/(24*time.Hour)))
		data = binary.LittleEndian.AppendUint32(data, uint32(since%(24*time.Hour)*300/time.Second))
		return append(typed, 0x6f, 8), data
	case int:
		return append(typed, 0x26, 8), binary.LittleEndian.AppendUint64([]byte{8}, uint64(v))
	case string:
		data = binary.LittleEndian.AppendUint16(nil, uint16(len(ucs2(v))))
		return append(typed, 0xe7, 200, 0, 0, 0, 0, 0, 0), append(data, ucs2(v)...)
	}
	panic(fmt.Sprintf("no cell of %T", value))
}

// output is the value of an output parameter.
func output(name string, value int) []byte {
	typed, data := cell(value)
	token := append([]byte{0xac, 0, 0}, short("@"+name)...)
	return append(append(append(token, 1), typed...), data...)
}

// examined is what sqlFacts returns of Ed-Fi's table, and change what is different.
func examined(change func(*facts)) []byte {
	f := facts{now: time.Now().UTC(), database: "EdFi_Admin", exact: true, updates: "READ_WRITE", oid: 4711, typeName: "datetime", keyType: typeGUID, selectable: true, deletable: true, indexed: true, rows: 100}
	if change != nil {
		change(&f)
	}
	bit := func(b bool) int { return map[bool]int{true: 1}[b] }
	return row(f.now, f.database, bit(f.exact), f.updates, f.oid, f.typeName, f.keyType, bit(f.selectable), bit(f.deletable), bit(f.indexed), bit(f.triggered), bit(f.filtered), int(f.rows), f.kind)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func count(kinds []string, kind string) (n int) {
	for _, k := range kinds {
		if k == kind {
			n++
		}
	}
	return n
}

func contains(text string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
