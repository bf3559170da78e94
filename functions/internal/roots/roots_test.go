package roots

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"
)

func TestEveryEmbeddedRootIsAnAuthorityThatPoolTrusts(t *testing.T) {
	pool, err := Pool(nil)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for rest := rds; ; count++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !root.IsCA {
			t.Errorf("%s is no authority", root.Subject.CommonName)
		}
		opts := x509.VerifyOptions{Roots: pool, CurrentTime: root.NotAfter.Add(-time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if _, err := root.Verify(opts); err != nil {
			t.Errorf("%s: %v", root.Subject.CommonName, err)
		}
	}
	if count < 50 {
		t.Errorf("%d roots; RDS has three for each region", count)
	}
}

func TestAFileWithoutCertificatesIsRefused(t *testing.T) {
	if _, err := Pool([]byte("nothing")); err == nil {
		t.Error("no error")
	}
}
