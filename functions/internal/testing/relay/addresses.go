//go:build unix

package relay

import (
	"context"
	"encoding/binary"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Resolver returns one that knows these addresses for every name.
func Resolver(t testing.TB, addresses []string) *net.Resolver {
	t.Helper()
	dns, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dns.Close() })
	go func() {
		for buffer := make([]byte, 1500); ; {
			n, from, err := dns.ReadFrom(buffer)
			if err != nil {
				return
			}
			dns.WriteTo(answer(buffer[:n], addresses), from) //nolint:errcheck // it is asked again
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", dns.LocalAddr().String())
	}}
}

// answer makes the reply to a question of DNS: RFC 1035, section 4.
func answer(question []byte, addresses []string) []byte {
	const header, typeA, typeAAAA = 12, 1, 28
	end := header
	for question[end] != 0 {
		end += 1 + int(question[end])
	}
	asked := binary.BigEndian.Uint16(question[end+1:])
	var records []byte
	count := uint16(0)
	for _, a := range addresses {
		ip := net.ParseIP(a)
		kind, data := uint16(typeAAAA), []byte(ip.To16())
		if four := ip.To4(); four != nil {
			kind, data = typeA, four
		}
		if kind != asked {
			continue
		}
		count++
		records = append(records, 0xc0, header) // the name of the question
		records = binary.BigEndian.AppendUint16(records, kind)
		records = append(records, 0, 1, 0, 0, 0, 60) // class, time to live
		records = binary.BigEndian.AppendUint16(records, uint16(len(data)))
		records = append(records, data...)
	}
	reply := append([]byte{}, question[:2]...)
	reply = append(reply, 0x81, 0x80, 0, 1) // an answer, to one question
	reply = binary.BigEndian.AppendUint16(reply, count)
	reply = append(reply, 0, 0, 0, 0)
	return append(append(reply, question[header:end+5]...), records...)
}

// BlackHole returns a port that neither accepts nor refuses connections; 0 is any. It
// skips the test where the system has none.
func BlackHole(t testing.TB, ip string, port uint16) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(int(port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { syscall.Listen(int(fd), 0) }) //nolint:errcheck // seen below
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 10 { // until the queue is full
		conn, err := net.DialTimeout("tcp", l.Addr().String(), 200*time.Millisecond)
		if err != nil {
			return uint16(l.Addr().(*net.TCPAddr).Port)
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Skip("a full queue of connections still takes more here")
	return 0
}
