package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

// The real binary and a real PostgreSQL with TLS, whose certificate is for
// localhost and not for 127.0.0.1. All that the function sends passes a wire
// that keeps it.
func TestTheServerProvesItsNameOrNothingIsSentToIt(t *testing.T) {
	t.Setenv("DATABASE_URL", "") // a server of its own, whose certificates are the test's
	ctx := t.Context()
	ours, other := newAuthority(t), newAuthority(t)
	key, good := ours.issue(t, time.Now().AddDate(1, 0, 0))
	expiredKey, expired := ours.issue(t, time.Now().Add(-time.Minute))
	r, err := rig.New(ctx, stage.Binary, pgserver.Options{
		Settings: map[string]string{"fsync": "off", "ssl": "on", "ssl_cert_file": "good.crt", "ssl_key_file": "good.key"},
		Files:    map[string][]byte{"good.crt": good, "good.key": key, "expired.crt": expired, "expired.key": expiredKey},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const name = "EdFi_Admin_TLS"
	conn, err := r.CreateDatabase(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := edfi.Fill(ctx, conn, edfi.FillOptions{Expired: 20, Live: 5}, nil); err != nil {
		t.Fatal(err)
	}
	db := database{name: name, conn: conn}
	// set changes the server's settings, and waits until new sessions have them.
	set := func(certificate, ssl string) {
		t.Helper()
		for _, sql := range []string{"ALTER SYSTEM SET ssl_cert_file = '" + certificate + ".crt'", "ALTER SYSTEM SET ssl_key_file = '" + certificate + ".key'",
			"ALTER SYSTEM SET ssl = " + ssl, "SELECT pg_reload_conf()"} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Fatal(err)
			}
		}
		for is := ""; is != certificate+".crt "+ssl; time.Sleep(5 * time.Millisecond) {
			if err := conn.QueryRow(ctx, "SELECT current_setting('ssl_cert_file') || ' ' || current_setting('ssl')").Scan(&is); err != nil {
				t.Fatal(err)
			}
		}
	}
	// invoke starts a function with this host and bundle, and answers its
	// reply and what it sent to the server.
	wire := newWire(t, fmt.Sprintf("127.0.0.1:%d", r.Postgres.Port))
	invoke := func(t *testing.T, event, host string, trusted *authority, env ...string) (outcome string, sent string) {
		t.Helper()
		bundle := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(bundle, trusted.pem, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := r.Start(ctx, append([]string{"DATABASES=" + name, "DB_HOST=" + host, fmt.Sprintf("DB_PORT=%d", wire.port()),
			"DB_CA_BUNDLE=" + bundle, "DB_TLS="}, env...)...)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Stop()
		reply, log, err := f.Invoke(ctx, event, time.Minute)
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		if strings.Contains(log+string(reply.Payload), r.Postgres.Password) {
			t.Errorf("the password is shown:\n%s", log)
		}
		if reply.Error != nil {
			return reply.Error.Type + ": " + reply.Error.Message, wire.take()
		}
		return string(reply.Payload), wire.take()
	}
	// What can be read on the way to any server that is connected to.
	plain := func(sent string) (found []string) {
		for _, text := range []string{name, "SCRAM-SHA-256", "clientaccesstokens", "edfi-token-purge"} {
			if strings.Contains(sent, text) {
				found = append(found, text)
			}
		}
		return found
	}

	for _, c := range []struct {
		claim             string
		certificate, ssl  string
		host              string
		trusted           *authority
		want              []string
		handshake, failed bool
	}{
		{"another name", "good", "on", "127.0.0.1", ours, []string{"certificate can't be verified", "127.0.0.1", "the name that is in it as DB_HOST"}, true, true},
		{"an unknown authority", "good", "on", "localhost", other, []string{"certificate can't be verified", "unknown authority", "DB_CA_BUNDLE"}, true, true},
		{"an expired certificate", "expired", "on", "localhost", ours, []string{"certificate can't be verified", "expired", "renew it"}, true, true},
		{"no TLS", "good", "off", "localhost", ours, []string{"server refused TLS connection", "ssl = on", "DB_TLS=disable"}, false, true},
		{"a proof", "good", "on", "localhost", ours, []string{`"code":"tls"`, "TLS 1.3", "certificate by " + ours.name}, true, false},
	} {
		t.Run("a server with "+c.claim, func(t *testing.T) {
			set(c.certificate, c.ssl)
			outcome, sent := invoke(t, `{"action":"check"}`, c.host, c.trusted)
			for _, want := range c.want {
				if !strings.Contains(outcome, want) {
					t.Errorf("%s\nlacks %q", outcome, want)
				}
			}
			if failed := strings.HasPrefix(outcome, "PurgeFailed"); failed != c.failed {
				t.Errorf("failed is %t: %s", failed, outcome)
			}
			if found := plain(sent); found != nil {
				t.Errorf("sent in plaintext: %q", found)
			}
			// Eight bytes ask for TLS; with no TLS nothing may follow them.
			if begins, asks := strings.HasPrefix(sent, askForTLS), strings.ReplaceAll(sent, askForTLS, "") == ""; !begins || asks == c.handshake {
				t.Errorf("sent %q", sent[:min(len(sent), 100)])
			}
			db.expect(t, 20, 5)
		})
	}

	t.Run("plaintext by choice", func(t *testing.T) {
		set("good", "on")
		outcome, sent := invoke(t, `{"action":"check"}`, "localhost", other, "DB_TLS=disable")
		if !strings.Contains(outcome, `"code":"no-tls"`) || strings.Contains(outcome, `"code":"tls"`) || strings.Contains(sent, askForTLS) {
			t.Errorf("%s", outcome)
		}
		if found := plain(sent); len(found) != 4 { // so the wire would have seen it above
			t.Errorf("sent in plaintext: %q", found)
		}
	})
	t.Run("a purge over TLS", func(t *testing.T) {
		outcome, sent := invoke(t, `{}`, "localhost", ours)
		if !strings.Contains(outcome, `"deletedRows":20`) || plain(sent) != nil {
			t.Errorf("%s, sent in plaintext: %q", outcome, plain(sent))
		}
		db.expect(t, 0, 5)
	})
}

// askForTLS is PostgreSQL's SSLRequest: a length, and a version that is none.
const askForTLS = "\x00\x00\x00\x08\x04\xd2\x16\x2f"

// authority issues certificates.
type authority struct {
	name        string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{name: "Test authority " + rand.Text()[:6]}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: a.name}, NotBefore: time.Now().AddDate(-1, 0, 0),
		NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.certificate, a.key = template, newKey(t)
	a.pem = a.sign(t, template, a.key)
	return a
}

// issue answers a key and a certificate for localhost, in PEM.
func (a *authority) issue(t *testing.T, until time.Time) (keyPEM, certificatePEM []byte) {
	t.Helper()
	key := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(2),
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, NotBefore: until.AddDate(-1, 0, 0), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, key)
}

func (a *authority) sign(t *testing.T, template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// wire passes connections on to a server and keeps what is sent to it.
type wire struct {
	listener net.Listener
	mu       sync.Mutex
	open     int // connections
	sent     bytes.Buffer
}

func newWire(t *testing.T, server string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &wire{listener: l}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			w.opened(1)
			go func() {
				defer w.opened(-1)
				defer upstream.Close()
				io.Copy(io.MultiWriter(w, upstream), client) //nolint:errcheck // it ends when either side does
			}()
			go func() {
				defer client.Close()
				io.Copy(client, upstream) //nolint:errcheck // as above
			}()
		}
	}()
	return w
}

func (w *wire) port() int { return w.listener.Addr().(*net.TCPAddr).Port }

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent.Write(p)
}

func (w *wire) opened(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open += n
}

// take answers what was sent since the last time, once all connections have ended.
func (w *wire) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.open > 0 {
		w.mu.Unlock()
		time.Sleep(time.Millisecond)
		w.mu.Lock()
	}
	text := w.sent.String()
	w.sent.Reset()
	return text
}
