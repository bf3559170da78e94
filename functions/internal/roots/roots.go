// Package roots holds the certificate authorities that databases on AWS are
// verified against.
package roots

import (
	"crypto/x509"
	_ "embed"
	"errors"
	"sync"
)

// RDS instances present certificates of Amazon's RDS authorities, which are in
// no system's store. RDS Proxy and Aurora Serverless present public ones.
//
//go:embed rds.pem
var rds []byte

// builtIn is parsed once.
var builtIn = sync.OnceValues(func() (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a system without a store still trusts RDS
	}
	if !pool.AppendCertsFromPEM(rds) {
		return nil, errors.New("the embedded bundle holds no certificate")
	}
	return pool, nil
})

// Pool returns the system's roots, those of RDS, and those in extra, a PEM
// file's content; nil is none.
func Pool(extra []byte) (*x509.CertPool, error) {
	base, err := builtIn()
	if err != nil {
		return nil, err
	}
	pool := base.Clone()
	if extra != nil && !pool.AppendCertsFromPEM(extra) {
		return nil, errors.New("the PEM file holds no certificate")
	}
	return pool, nil
}
