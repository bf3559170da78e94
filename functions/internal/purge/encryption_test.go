package purge

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"
)

func TestTheConnectionsEncryptionIsTold(t *testing.T) {
	state := func(left time.Duration) *tls.ConnectionState {
		return &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, PeerCertificates: []*x509.Certificate{
			{Issuer: pkix.Name{CommonName: "Example CA"}, NotAfter: time.Now().Add(left)},
		}}
	}
	for want, c := range map[string]*tls.ConnectionState{
		"warning no-tls":           nil,
		"info tls":                 state(60 * 24 * time.Hour),
		"warning certificate-ends": state(7 * 24 * time.Hour),
	} {
		f := Encryption(c)
		if f.Level+" "+f.Code != want || c != nil && (!strings.Contains(f.Message, "TLS 1.3") || !strings.Contains(f.Message, "Example CA")) {
			t.Errorf("%+v, want %s", f, want)
		}
	}
}

func TestACertificatesFaultComesWithWhatMendsIt(t *testing.T) {
	for said, want := range map[string][]string{
		"tls: failed to verify certificate: x509: certificate is valid for db.example.org, not 10.0.0.1":                                                                                                                                   {"valid for db.example.org", "as DB_HOST"},
		"tls: failed to verify certificate: x509: certificate relies on legacy Common Name field, use SANs instead":                                                                                                                        {"subject alternative names", "another one"},
		"tls: failed to verify certificate: x509: cannot validate certificate for 10.0.0.1 because it doesn't contain any IP SANs":                                                                                                         {"subject alternative names", "another one"},
		"tls: failed to verify certificate: x509: certificate signed by unknown authority":                                                                                                                                                 {"DB_CA_BUNDLE"},
		`tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of "x509: cannot verify signature: insecure algorithm SHA1-RSA" while trying to verify candidate authority certificate "old")`: {"signed by SHA-1", "another one"},
		"tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time is later":                                                                                                                      {"renew it"},
		"tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026-11-27T19:14:27Z is before 2026-11-27T19:44:27Z":                                                                           {"clock of whoever made it", "wait"},
		"tls: failed to verify certificate: x509: certificate specifies an incompatible key usage":                                                                                                                                         {"for servers", "another one"},
		"tls: failed to verify certificate: x509: unhandled critical extension":                                                                                                                                                            {"another one"},
		"tls: server sent certificate containing RSA key larger than 8192 bits":                                                                                                                                                            {"larger than 8192", "another one"},
		"tls: server's certificate contains an unsupported type of public key: *dsa.PublicKey":                                                                                                                                             {"unsupported type", "another one"},
		"tls: failed to parse certificate from server: x509: negative serial number":                                                                                                                                                       {"serial number is negative", "another one"},
		"tls: failed to parse certificate from server: x509: malformed certificate":                                                                                                                                                        {"malformed", "another one"},
		"crypto/rsa: 512-bit keys are insecure (see https://go.dev/pkg/crypto/rsa#hdr-Minimum_key_size)":                                                                                                                                   {"too short", "another one"},
	} {
		got := CertificateFault("connect: " + said)
		for _, part := range append(want, "the server's certificate can't be verified") {
			if !strings.Contains(got, part) {
				t.Errorf("%s\nis told as %q, which lacks %q", said, got, part)
			}
		}
	}
	for _, said := range []string{"incompatible key usage", "is not yet valid: current time 1 is before 2"} {
		if got := CertificateFault("failed to verify certificate: x509: " + said); strings.Contains(got, "DB_HOST") || strings.Contains(got, "renew") {
			t.Errorf("%q can't mend it", got)
		}
	}
	if got := CertificateFault("connect: EOF"); got != "" {
		t.Errorf("%q", got)
	}
}
