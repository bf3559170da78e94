// Package relay passes TCP connections on, counts round trips, and makes the faults
// that networks have.
package relay

import (
	"bytes"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Relay listens on a free port of the loopback interface and passes each connection
// on to one server. Its faults affect all connections, open ones included, until
// Heal.
type Relay struct {
	listener    net.Listener
	trips       atomic.Int64
	connections atomic.Int64
	cuts        atomic.Int64
	links       int64 // the number of the last connection

	mu     sync.Mutex
	server string
	open   map[net.Conn]bool
	faults faults
}

// faults are the faults at the moment; the zero value is none.
type faults struct {
	delay  time.Duration
	silent bool
	refuse bool
	cut    func(link int64, way Way, data []byte) (pass int, cut bool)
	hush   func(way Way, data []byte) bool // whether all is silent from this on
	change func(way Way, data []byte) []byte
}

// Way is the direction in which bytes go.
type Way string

// The ways.
const (
	ToServer Way = "to server"
	ToClient Way = "to client"
)

// New starts a relay to the server at host:port.
func New(server string) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: l, server: server, open: map[net.Conn]bool{}}
	go r.accept()
	return r, nil
}

// Port returns the port that the relay listens on, on 127.0.0.1.
func (r *Relay) Port() uint16 { return uint16(r.listener.Addr().(*net.TCPAddr).Port) }

// Counts returns how many connections there were since the last call, and how
// many round trips they made in all: how often a client sent after the server had.
func (r *Relay) Counts() (connections, trips int64) {
	return r.connections.Swap(0), r.trips.Swap(0)
}

// Cuts returns how many connections were reset by CutAfter, CutAt and CutWhere.
func (r *Relay) Cuts() int64 { return r.cuts.Load() }

// Close stops listening; open connections stay open.
func (r *Relay) Close() error { return r.listener.Close() }

// PointTo makes new connections go to another server.
func (r *Relay) PointTo(server string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server = server
}

// Delay passes everything on that much later, each way.
func (r *Relay) Delay(d time.Duration) { r.set(func(f *faults) { f.delay = d }) }

// Silence passes nothing on any more and closes nothing. Connections that it affected
// stay silent after Heal.
func (r *Relay) Silence() { r.set(func(f *faults) { f.silent = true }) }

// SilenceAt is Silence from when text goes that way; it does not arrive.
func (r *Relay) SilenceAt(way Way, text string) {
	r.set(func(f *faults) {
		f.hush = func(w Way, data []byte) bool { return w == way && bytes.Contains(data, []byte(text)) }
	})
}

// Change passes on what change makes of what goes each way.
func (r *Relay) Change(change func(way Way, data []byte) []byte) {
	r.set(func(f *faults) { f.change = change })
}

// Refuse ends new connections at once.
func (r *Relay) Refuse() { r.set(func(f *faults) { f.refuse = true }) }

// Reset resets every open connection.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	reset(slices.Collect(maps.Keys(r.open))...)
}

// CutAfter resets, once, the connection on which byte number n from now goes
// that way, and passes on what comes before.
func (r *Relay) CutAfter(way Way, n int) {
	r.CutWhere(func(_ int64, w Way, data []byte) (int, bool) {
		if w != way {
			return 0, false
		}
		pass := n
		n -= len(data)
		return pass, n < 0
	})
}

// CutAt resets, once, the connection on which text goes that way, and passes on
// nothing of what was read with it.
func (r *Relay) CutAt(way Way, text string) {
	r.CutWhere(func(_ int64, w Way, data []byte) (int, bool) {
		return 0, w == way && bytes.Contains(data, []byte(text))
	})
}

// CutWhere resets, once, the connection on which at wants it. That is told what goes on
// each, by its number, and says how many of these bytes are passed on.
func (r *Relay) CutWhere(at func(link int64, way Way, data []byte) (pass int, cut bool)) {
	r.set(func(f *faults) { f.cut = at })
}

// Heal ends all faults, for new connections and for those that still live.
func (r *Relay) Heal() { r.set(func(f *faults) { *f = faults{} }) }

func (r *Relay) set(change func(*faults)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.faults)
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		server, refuse := r.server, r.faults.refuse
		r.mu.Unlock()
		if refuse {
			reset(client)
			continue
		}
		upstream, err := net.Dial("tcp", server)
		if err != nil {
			reset(client)
			continue
		}
		r.mu.Lock()
		r.open[client], r.open[upstream] = true, true
		r.mu.Unlock()
		r.connections.Add(1)
		r.links++
		link := r.links
		var answered atomic.Bool
		answered.Store(true)
		go r.pass(link, ToServer, upstream, client, func() {
			if answered.Swap(false) {
				r.trips.Add(1)
			}
		})
		go r.pass(link, ToClient, client, upstream, func() { answered.Store(true) })
	}
}

// pass copies one direction, each piece at its own time: what comes while another
// piece is on its way is not held up by it, as on a real link.
func (r *Relay) pass(link int64, way Way, to, from net.Conn, seen func()) {
	type piece struct {
		due  time.Time
		data []byte
		cut  bool
	}
	underWay := make(chan piece, 1024)
	go func() {
		defer close(underWay)
		for silent := false; ; {
			buffer := make([]byte, 64<<10)
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			seen()
			data, f, cut := r.judge(link, way, buffer[:n])
			if silent = silent || f.silent; !silent {
				underWay <- piece{time.Now().Add(f.delay), data, cut}
			}
		}
	}()
	defer func() {
		to.Close()
		r.mu.Lock()
		delete(r.open, to)
		r.mu.Unlock()
		from.Close() // ends the reader
		for range underWay {
		}
	}()
	for p := range underWay {
		SleepUntil(p.due)
		if _, err := to.Write(p.data); err != nil {
			return
		}
		if p.cut {
			reset(to, from)
			return
		}
	}
}

// judge returns what of data to pass on, and whether to cut the connection then.
func (r *Relay) judge(link int64, way Way, data []byte) (pass []byte, f faults, cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.faults.hush != nil && r.faults.hush(way, data) {
		r.faults.silent = true
	}
	if r.faults.change != nil {
		data = r.faults.change(way, data)
	}
	if f = r.faults; f.cut != nil {
		var n int
		if n, cut = f.cut(link, way, data); cut {
			r.faults.cut, data = nil, data[:n]
			r.cuts.Add(1)
		}
	}
	return data, f, cut
}

// reset closes conns so that their peers see "connection reset by peer". It marks all
// of them before it closes the first, because closing one can end another, and that
// one would end in order.
func reset(conns ...net.Conn) {
	for _, conn := range conns {
		conn.(*net.TCPConn).SetLinger(0) //nolint:errcheck // it may have ended already
	}
	for _, conn := range conns {
		conn.Close()
	}
}
