package purge

import (
	"crypto/tls"
	"fmt"
	"strings"
	"time"
)

// certificateAge is how long before its end a certificate is worth a word.
const certificateAge = 30 * 24 * time.Hour

// Encryption tells how a connection is secured; nil is not at all.
func Encryption(state *tls.ConnectionState) Finding {
	if state == nil {
		return NoTLS.Found("the connection is not encrypted: set DB_TLS to verify-full")
	}
	text := fmt.Sprintf("%s, %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
	if len(state.PeerCertificates) == 0 {
		return TLS.Found(text)
	}
	own := state.PeerCertificates[0]
	text += fmt.Sprintf(", certificate by %s until %s", own.Issuer.CommonName, own.NotAfter.Format(time.DateOnly))
	if time.Until(own.NotAfter) < certificateAge {
		return CertificateEnds.Found(text + ": renew it; on RDS, choose a newer authority for the instance")
	}
	return TLS.Found(text)
}

// CertificateFault returns what is wrong with a server's certificate and what to do,
// where that is what an error of crypto/tls with this text is about, else "".
func CertificateFault(text string) string {
	if _, reason, ok := strings.Cut(text, "failed to verify certificate: "); ok {
		return unverified(reason)
	}
	if _, reason, ok := strings.Cut(text, "failed to parse certificate from server: "); ok {
		return unverified("it can't be read: " + reason)
	}
	if _, reason, ok := strings.Cut(text, "crypto/rsa: "); ok && strings.Contains(reason, "insecure") {
		return unverified(reason)
	}
	if _, reason, ok := strings.Cut(text, "tls: server"); ok && (strings.Contains(reason, "RSA key larger than") || strings.Contains(reason, "unsupported type of public key")) {
		return unverified("the server" + reason)
	}
	return ""
}

// unverified says why a server's certificate was refused, in the words of crypto/x509,
// and what to do. What those words don't tell comes ahead of the remedy.
func unverified(reason string) string {
	const another = "give the server another one; on RDS, choose a newer authority for the instance (rds-ca-rsa2048-g1)"
	const name = "give the name that is in it as DB_HOST"
	remedy := another
	has := func(part string) bool { return strings.Contains(reason, part) }
	switch {
	case has("doesn't contain any IP SANs"): // names it may have
		remedy = name + ", and not an address; where it has none among its subject alternative names, " + another
	case has("legacy Common Name"), has("is not valid for any names"):
		remedy = "it has no such name in its subject alternative names, and the common name does not count: " + another
	case has("certificate is valid for"):
		remedy = name
	case has("incompatible key usage"):
		remedy = "it is not one for servers: " + another
	case has("negative serial number"):
		remedy = "its serial number is negative, as in those that old SQL Servers make for themselves: " + another
	case has("insecure algorithm"): // ahead of the unknown authority that comes of it
		remedy = "it, or its authority's, is signed by SHA-1 or older: " + another
	case has("keys are insecure"):
		remedy = "its RSA key is too short: " + another
	case has("unknown authority"):
		remedy = "give its authority in DB_CA_BUNDLE, if you trust it; Amazon's own are built in, but for some regions"
	case has(" is before "): // and expired or not yet valid, which is one to crypto/x509
		remedy = "it is not valid yet, as where the clock of whoever made it is ahead: set that, and " + another + ", or wait"
	case has("expired"):
		remedy = "renew it; on RDS, choose a newer authority for the instance"
	}
	return "the server's certificate can't be verified: " + reason + "; " + remedy
}
