// Package relay passes TCP connections on and counts round trips.
package relay

import (
	"net"
	"sync/atomic"
)

// Relay listens on a free port of the loopback interface and passes each
// connection on to one server.
type Relay struct {
	listener    net.Listener
	server      string
	trips       atomic.Int64
	connections atomic.Int64
}

// New starts a relay to the server at host:port.
func New(server string) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: l, server: server}
	go r.accept()
	return r, nil
}

// Port answers the port that the relay listens on, on 127.0.0.1.
func (r *Relay) Port() uint16 { return uint16(r.listener.Addr().(*net.TCPAddr).Port) }

// Counts answers how many connections there were since the last call, and how
// many round trips on all of them: how often a client spoke after the server had.
func (r *Relay) Counts() (connections, trips int64) {
	return r.connections.Swap(0), r.trips.Swap(0)
}

// Close takes no more connections; those that are open live on.
func (r *Relay) Close() error { return r.listener.Close() }

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		upstream, err := net.Dial("tcp", r.server)
		if err != nil {
			client.Close()
			continue
		}
		r.connections.Add(1)
		var answered atomic.Bool
		answered.Store(true)
		go pass(upstream, client, func() {
			if answered.Swap(false) {
				r.trips.Add(1)
			}
		})
		go pass(client, upstream, func() { answered.Store(true) })
	}
}

func pass(to, from net.Conn, seen func()) {
	defer to.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			seen()
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
