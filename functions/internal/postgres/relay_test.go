package postgres

import (
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
)

var quiet = slog.New(slog.DiscardHandler)

// relay passes connections on to the server and counts round trips: how often
// the client speaks after the server has.
type relay struct {
	host  string
	port  uint16
	trips atomic.Int64
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &relay{host: "127.0.0.1", port: uint16(l.Addr().(*net.TCPAddr).Port)}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
			if err != nil {
				client.Close()
				return
			}
			var answered atomic.Bool
			answered.Store(true)
			go pass(upstream, client, func() {
				if answered.Swap(false) {
					r.trips.Add(1)
				}
			})
			go pass(client, upstream, func() { answered.Store(true) })
		}
	}()
	return r
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
			if err != io.EOF {
				from.Close()
			}
			return
		}
	}
}
