package main

import (
	"context"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// linkDelay is that of the slow link, there and back: a database in another
// availability zone.
const linkDelay = time.Millisecond

// slowLink passes connections on to a server, half of a delay late each way.
type slowLink struct{ net.Listener }

func newSlowLink(host string, port uint16, delay time.Duration) (*slowLink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err != nil {
				near.Close() //nolint:errcheck // it is refused
				continue
			}
			go passLate(far, near, delay/2)
			go passLate(near, far, delay/2)
		}
	}()
	return &slowLink{l}, nil
}

func (l *slowLink) Port() int { return l.Addr().(*net.TCPAddr).Port }

// roundTrip answers what one takes to the server, through the link if there is
// one, in ms.
func roundTrip(ctx context.Context, s *stage, link *slowLink) (float64, error) {
	config, err := pgx.ParseConfig(s.rig.Postgres.URL("postgres"))
	if err != nil {
		return 0, err
	}
	if link != nil {
		config.Port = uint16(link.Port())
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is under way
	var ms []float64
	for range 200 {
		start := time.Now()
		if err := conn.Ping(ctx); err != nil {
			return 0, err
		}
		ms = append(ms, time.Since(start).Seconds()*1000)
	}
	return median(ms), nil
}

// passLate writes what it reads, in its order, each piece so much after it
// came: what comes meanwhile is not held up, as on a real link.
func passLate(to, from net.Conn, delay time.Duration) {
	type piece struct {
		due  time.Time
		data []byte
	}
	under := make(chan piece, 1024)
	go func() {
		defer close(under)
		for {
			buffer := make([]byte, 16<<10)
			n, err := from.Read(buffer)
			if n > 0 {
				under <- piece{time.Now().Add(delay), buffer[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	defer to.Close() //nolint:errcheck // the other end is gone
	for p := range under {
		nap(p.due)
		if _, err := to.Write(p.data); err != nil {
			break
		}
	}
	from.Close() //nolint:errcheck // so that the reader ends
	for range under {
	}
}
