package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// echo is a server that sends back what it receives.
func echo(t *testing.T) string {
	t.Helper()
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
			go func() {
				defer conn.Close()
				io.Copy(conn, conn) //nolint:errcheck // the other end tells
			}()
		}
	}()
	return l.Addr().String()
}

// say sends so many bytes through r and returns how many come back before the
// connection ends or nothing comes for a while.
func say(t *testing.T, r *Relay, bytesSent int) (back int, err error) {
	t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(r.Port()))))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))    //nolint:errcheck // as below
	conn.Write(bytes.Repeat([]byte("x"), bytesSent)) //nolint:errcheck // the read tells
	return io.ReadFull(conn, make([]byte, bytesSent))
}

func TestFaultsAreWhatTheySay(t *testing.T) {
	r, err := New(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	expect := func(what string, back int, want error) {
		t.Helper()
		got, err := say(t, r, 100)
		if got != back || !errors.Is(err, want) {
			t.Errorf("%s: %d bytes and %v, want %d and %v", what, got, err, back, want)
		}
	}
	expect("nothing", 100, nil)
	r.CutAfter(ToClient, 40)
	expect("a cut on the way back", 40, syscall.ECONNRESET)
	expect("a cut strikes once", 100, nil)
	r.CutAfter(ToServer, 40)
	if got, err := say(t, r, 100); got > 40 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a cut on the way there: %d bytes and %v", got, err)
	}
	r.CutAt(ToClient, "xx")
	expect("a cut at a text", 0, syscall.ECONNRESET)
	if r.Cuts() != 3 {
		t.Errorf("%d cuts, want 3", r.Cuts())
	}
	r.Refuse()
	refused := func(what string) { // while it connects, or just after
		t.Helper()
		if got, err := say(t, r, 100); got != 0 || err == nil {
			t.Errorf("%s: %d bytes and %v", what, got, err)
		}
	}
	refused("refused")
	r.Heal()
	r.Silence()
	if got, err := say(t, r, 100); got != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silence: %d bytes and %v", got, err)
	}
	r.Heal()
	r.SilenceAt(ToClient, "y")
	expect("silence at a text that does not come", 100, nil)
	r.SilenceAt(ToClient, "x")
	if got, err := say(t, r, 100); got != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silence at a text: %d bytes and %v", got, err)
	}
	r.Heal()
	r.Delay(100 * time.Millisecond)
	begin := time.Now()
	expect("delayed", 100, nil)
	if took := time.Since(begin); took < 200*time.Millisecond {
		t.Errorf("there and back in %s", took)
	}
	r.Heal()
	r.PointTo("127.0.0.1:1")
	refused("nobody there")
}

func TestADelayHoldsUpNoPieceThatComesMeanwhileAndKeepsTheOrder(t *testing.T) {
	r, err := New(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const delay, pieces = 100 * time.Millisecond, 20
	r.Delay(delay)
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(r.Port()))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	go func() {
		for range pieces { // each is on its way before the one ahead has arrived
			conn.Write(bytes.Repeat([]byte("0123456789abcdef"), 100)) //nolint:errcheck // the read tells
			time.Sleep(5 * time.Millisecond)
		}
	}()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 100*pieces)
	back := make([]byte, len(sent))
	if n, err := io.ReadFull(conn, back); err != nil || !bytes.Equal(back, sent) {
		t.Errorf("%d bytes of %d, %v", n, len(sent), err)
	}
	// One after the other they would take 20 delays each way.
	if took := time.Since(begin); took < 2*delay || took > pieces*delay {
		t.Errorf("all came back after %s", took)
	}
}
