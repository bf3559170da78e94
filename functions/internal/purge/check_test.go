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
