package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// root makes the certificate of an authority, or of a server, in PEM.
func root(t *testing.T, name string, until time.Time, isCA bool) string {
	t.Helper()
	return issued(t, name, name, until, isCA)
}

func issued(t *testing.T, name, issuer string, until time.Time, isCA bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: until.AddDate(-9, 0, 0),
		NotAfter: until, IsCA: isCA, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: issuer}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// renew runs an update of a bundle from a server that answers with another.
func renew(t *testing.T, before, answer string, status int, force bool) (after, out string, err error) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		w.Write([]byte(answer))
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "rds.pem")
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	err = update{client: server.Client(), path: file, force: force, source: "a test", now: now, out: &b}.run(server.URL + "/bundle.pem")
	text, readErr := os.ReadFile(file)
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(text), b.String(), err
}

func TestTheBundleIsRenewedAndTheChangeIsTold(t *testing.T) {
	later := now.AddDate(30, 0, 0)
	stays, comes, goes := root(t, "Amazon RDS b-1 Root CA", later, true), root(t, "Amazon RDS a-1 Root CA", later.AddDate(1, 0, 0), true),
		root(t, "Amazon RDS c-1 Root CA", later, true)
	old := root(t, "Amazon RDS d-1 2019 CA", now.AddDate(0, 0, -1), true)
	after, out, err := renew(t, stays+goes, "text\n"+stays+comes+stays+old+root(t, "Amazon RDS Beta a-1 Root CA", later, true)+
		issued(t, "Amazon RDS a-1 CA", "Amazon RDS a-1 Root CA", later, true), 200, false)
	if err != nil {
		t.Fatal(err)
	}
	want := "# Certificate authorities of Amazon RDS, written by make update-ca.\n# Source: a test\n# Read: 2026-11-24\n# Certificates: 2\n" +
		"# First to expire: 2056-11-24\n# Amazon RDS a-1 Root CA\n" + comes + "# Amazon RDS b-1 Root CA\n" + stays
	if after != want {
		t.Errorf("got\n%s\nwant\n%s", after, want)
	}
	wantOut := "2 authorities, the first expires on 2056-11-24\nleft out: Amazon RDS d-1 2019 CA, until 2026-11-23\n" +
		"left out: Amazon RDS Beta a-1 Root CA, until 2056-11-24\nleft out: Amazon RDS a-1 CA, until 2056-11-24\nadded: Amazon RDS a-1 Root CA, until 2057-11-24\nremoved: Amazon RDS c-1 Root CA, until 2056-11-24\n"
	if out != wantOut {
		t.Errorf("got\n%s\nwant\n%s", out, wantOut)
	}
	again, out, err := renew(t, after, after, 200, false)
	if err != nil || again != after || strings.Contains(out, "added") || strings.Contains(out, "removed") {
		t.Errorf("a second time: %v\n%s", err, out)
	}
}

func TestWhatIsNoBundleOfRDSChangesNothing(t *testing.T) {
	later := now.AddDate(30, 0, 0)
	good := root(t, "Amazon RDS a-1 Root CA", later, true)
	before := good + root(t, "Amazon RDS b-1 Root CA", later, true)
	for want, c := range map[string]struct {
		answer string
		status int
	}{
		"no certificate authority":      {before + root(t, "Amazon RDS c-1", later, false), 200},
		"no authority of Amazon RDS":    {before + root(t, "Another Root CA", later, true), 200},
		"holds a PRIVATE KEY":           {before + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"})), 200},
		"malformed":                     {before + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), 200},
		"can't be read":                 {good[:len(good)/2] + before, 200},
		"holds no valid":                {root(t, "Amazon RDS c-1 Root CA", now.AddDate(0, 0, -1), true), 200},
		"1 authorities and there are 2": {good, 200},
		"403 Forbidden":                 {before, 403},
	} {
		after, _, err := renew(t, before, c.answer, c.status, want == "403 Forbidden")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if after != before {
			t.Errorf("%s: the bundle was changed", want)
		}
	}
	if after, _, err := renew(t, before, good, 200, true); err != nil || strings.Count(after, "BEGIN") != 1 {
		t.Errorf("with force: %v\n%s", err, after)
	}
	if err := (update{}).run("http://example.org/bundle.pem"); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("in plaintext: %v", err)
	}
}

func TestAFileIsNamedWithoutItsDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"rds.pem", "given.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(root(t, "Amazon RDS a-1 Root CA", now.AddDate(1, 0, 0), true)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	err := update{path: filepath.Join(dir, "rds.pem"), now: now, out: &out}.run(filepath.Join(dir, "given.pem"))
	after, _ := os.ReadFile(filepath.Join(dir, "rds.pem"))
	if err != nil || !strings.Contains(string(after), "# Source: given.pem\n") || !strings.Contains(out.String(), "added") || !strings.Contains(out.String(), "removed") {
		t.Errorf("%v\n%s\n%s", err, out.String(), after)
	}
}
