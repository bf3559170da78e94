package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
)

// oneSecret is a Secrets Manager that returns its secret so many times, and then nothing.
type oneSecret struct {
	text  string
	times atomic.Int64
}

func (o *oneSecret) GetSecretValue(ctx context.Context, _ *secretsmanager.GetSecretValueInput, _ ...func(*secretsmanager.Options)) (*secretsmanager.GetSecretValueOutput, error) {
	if o.times.Add(-1) < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &secretsmanager.GetSecretValueOutput{SecretString: &o.text}, nil
}

// accepting takes connections and has each handled so.
func accepting(t *testing.T, handle func(net.Conn)) (port int) {
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
			go func() { defer conn.Close(); handle(conn) }()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// nameServer is where names are asked for, instead of the system's; 0 is there.
var nameServer atomic.Uint32

// The resolver is replaced before any test runs: a driver that gave up a connection
// may still read it after its test.
func init() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if port := nameServer.Load(); port != 0 {
			network, address = "tcp", fmt.Sprintf("127.0.0.1:%d", port)
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
}

// silentNames has no name resolved, as where no route leads to the name server.
func silentNames(t *testing.T) {
	port := accepting(t, func(conn net.Conn) { io.Copy(io.Discard, conn) }) //nolint:errcheck // it says nothing
	nameServer.Store(uint32(port))
	t.Cleanup(func() { nameServer.Store(0) })
}

// Whatever hangs before the first connection is there, the function returns before it
// is killed, and a metric line says that it did nothing.
func TestWhateverHangsBeforeTheFirstConnectionTheFunctionReturnsInTime(t *testing.T) {
	silentNames(t)
	silent := accepting(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })  //nolint:errcheck // it says nothing
	ending := accepting(t, func(conn net.Conn) { conn.Read(make([]byte, 1)) }) //nolint:errcheck // it starts
	trickling := accepting(t, func(conn net.Conn) {                            // a byte of nothing now and then
		for {
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	unnamed := secretsmanager.New(secretsmanager.Options{
		Region: "us-east-1", BaseEndpoint: new("http://secrets.example.org"),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, nil
		}),
	})
	var all sync.WaitGroup
	for what, c := range map[string]struct {
		host    string
		port    int
		secrets secret.Getter // nil returns host and port
		tls     string
		warm    bool // a login worked before, on host and port
	}{
		"Secrets Manager":                                   {secrets: new(oneSecret)},
		"Secrets Manager, then the server":                  {secrets: new(oneSecret), host: "127.0.0.1", port: silent, tls: "disable", warm: true},
		"Secrets Manager, then its name":                    {secrets: unnamed, host: "db.example.org", port: 5432, tls: "verify-full", warm: true},
		"the name of Secrets Manager":                       {secrets: unnamed},
		"the name of the server":                            {host: "db.example.org", port: 5432, tls: "disable"},
		"the name of the server, verified":                  {host: "db.example.org", port: 5432, tls: "verify-full"},
		"a server that says nothing":                        {host: "127.0.0.1", port: silent, tls: "disable"},
		"a handshake":                                       {host: "127.0.0.1", port: silent, tls: "verify-full"},
		"a server that hangs up":                            {host: "127.0.0.1", port: ending, tls: "disable"},
		"a handshake that is hung up":                       {host: "127.0.0.1", port: ending, tls: "verify-full"},
		"a server that says next to nothing":                {host: "127.0.0.1", port: trickling, tls: "disable"},
		"a login that is refused, and then Secrets Manager": {host: stage.Postgres.Host, port: int(stage.Postgres.Port), tls: "disable"},
	} {
		for _, engine := range []string{"postgres", "sqlserver"} {
			for _, databases := range []string{"A", "A*", "A,B,C,D,E,F,G,H"} {
				for _, stop := range []string{"1s", "10s"} {
					all.Go(func() {
						name := strings.Join([]string{what, engine, databases, stop}, ", ")
						settings, faults := readConfig(env("SECRET_ID=s", "STOP_BEFORE="+stop, "DATABASES="+databases, "DB_TLS="+c.tls))
						if faults != nil {
							t.Error(faults)
							return
						}
						var lines bytes.Buffer
						h := &handler{config: settings, secrets: c.secrets, metrics: &lines, log: slog.New(slog.DiscardHandler)}
						if h.secrets == nil {
							once := &oneSecret{text: fmt.Sprintf(`{"engine":%q,"host":%q,"port":%d,"username":"nobody","password":"none"}`, engine, c.host, c.port)}
							once.times.Store(1)
							h.secrets = once
						}
						if c.warm {
							h.worked = &secret.Login{Engine: engine, Host: c.host, Port: uint16(c.port)}
						}
						ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
						defer cancel()
						result, err := h.run(ctx, request{action: purge.Purge})
						if ctx.Err() != nil {
							t.Errorf("%s: killed before %+v, %v", name, result, err)
						}
						if _, told := errors.AsType[messages.InvokeResponse_Error](err); !told && result.Status != purge.Partial || result.DeletedRows != 0 {
							t.Errorf("%s: %+v, %v", name, result, err)
						}
						if !strings.Contains(lines.String(), `"DeletedRows":0`) || strings.Contains(lines.String(), `"OldestExpiredAge"`) {
							t.Errorf("%s: %s", name, lines.String())
						}
					})
				}
			}
		}
	}
	all.Wait()
}
