//go:build unix

package sqlserver

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strconv"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/relay"
)

// The addresses of one name, as DNS tells them.
const alive, dead, silent, mute, refuses, nowhere = "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.0.4", "2001:db8::1"

// aroundStandIn makes a stand-in on alive, and on the other addresses what their names
// say.
func aroundStandIn(t *testing.T) Server {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs more than one loopback address")
	}
	s := newStandIn(t, &standIn{answer: newScript(7, 1, quietly).answer})
	relay.BlackHole(t, dead, s.port())
	for _, ip := range []string{silent, mute} {
		takes, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(int(s.port()))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { takes.Close() })
	}
	there := s.server()
	there.Host = "db.example"
	return there
}

func opened(ctx context.Context, s Server) error {
	conn, err := s.Open(ctx, "EdFi_Admin", purge.ClientAccessTokens, true)
	if err == nil {
		conn.Close()
	}
	return err
}

func TestEachAddressOfAHostGetsItsTurn(t *testing.T) {
	t.Parallel()
	there := aroundStandIn(t)
	for name, addresses := range map[string][]string{
		"dead first":              {dead, alive},
		"dead last":               {alive, dead},
		"many dead":               {dead, dead, dead, dead, dead, alive},
		"one refuses":             {refuses, alive},
		"one takes and is silent": {silent, alive},
		"two are silent":          {silent, mute, alive},
		"IPv6 leads nowhere":      {nowhere, alive},
		"all of it":               {nowhere, dead, silent, refuses, alive},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through := there
			through.resolver = relay.Resolver(t, addresses)
			start := time.Now()
			if err := opened(t.Context(), through); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took >= connectTimeout {
				t.Errorf("after %s", took)
			}
		})
	}
	for name, c := range map[string]struct {
		addresses []string
		want      error
	}{
		"all dead":                {[]string{dead, dead}, purge.ErrUnreached},
		"one silent, one dead":    {[]string{dead, silent}, purge.ErrNotYet},
		"one silent, one refuses": {[]string{refuses, silent}, purge.ErrNotYet},
		"all refuse":              {[]string{refuses, refuses}, purge.ErrLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through := there
			through.resolver = relay.Resolver(t, c.addresses)
			start := time.Now()
			err := opened(t.Context(), through)
			if took := time.Since(start); !errors.Is(err, c.want) || took > 2*connectTimeout {
				t.Errorf("after %s: %v", took, err)
			}
		})
	}
}

// One of several servers of a name may be starting up.
func TestAServerThatStartsUpLeavesTheTurnToTheNextAddress(t *testing.T) {
	t.Parallel()
	there := aroundStandIn(t)
	for number, opens := range map[int32]bool{17187: true, 18456: false} {
		starting := &standIn{refuse: failure(number, 14, "not now")}
		var err error
		if starting.listener, err = net.Listen("tcp", net.JoinHostPort("127.0.0.6", strconv.Itoa(int(there.Port)))); err != nil {
			t.Fatal(err)
		}
		go starting.accept()
		through := there
		through.resolver = relay.Resolver(t, []string{"127.0.0.6", alive})
		if err := opened(t.Context(), through); (err == nil) != opens {
			t.Errorf("%d: %v", number, err)
		}
		starting.listener.Close()
	}
}
