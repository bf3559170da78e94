// Command update-ca renews the certificate authorities of Amazon RDS that are
// built into the function:
//
//	make update-ca
//	make update-ca BUNDLE=global-bundle.pem SOURCE='what to name as the source' FORCE=1
//
// It reads AWS's published bundle, or the file or address in BUNDLE, refuses
// what is no bundle of RDS or has fewer authorities than there are now, and
// says what it added and removed.
package main

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	published = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem"
	path      = "functions/internal/roots/rds.pem"
	mostBytes = 10 << 20 // the bundle has a fiftieth of it
)

func main() {
	force := flag.Bool("force", false, "accept a bundle with fewer authorities than there are now")
	source := flag.String("source", "", "what to name as the source; the bundle's own address or name if empty")
	flag.Parse()
	u := update{client: &http.Client{Timeout: time.Minute}, path: path, force: *force, source: *source, now: time.Now(), out: os.Stdout}
	if err := u.run(cmp.Or(flag.Arg(0), published)); err != nil {
		fmt.Fprintln(os.Stderr, "update-ca:", err)
		os.Exit(1)
	}
}

type update struct {
	client *http.Client
	path   string // of the bundle to renew
	force  bool
	source string
	now    time.Time
	out    io.Writer
}

// run replaces the bundle by the one at the address, a URL or a file's path.
func (u update) run(address string) error {
	text, err := u.read(address)
	if err != nil {
		return err
	}
	roots, left, err := parse(text, u.now)
	if err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	before, err := os.ReadFile(u.path)
	if err != nil {
		return err
	}
	old, gone, err := parse(before, u.now)
	if err != nil {
		return fmt.Errorf("%s: %w", u.path, err)
	}
	if have := len(old) + len(gone); len(roots) < have && !u.force {
		return fmt.Errorf("%s has %d authorities and there are %d now: nothing was changed; FORCE=1 takes it all the same", address, len(roots), have)
	}
	if err := os.WriteFile(u.path, u.render(roots, address), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(u.out, "%d authorities, the first expires on %s\n", len(roots), day(first(roots)))
	u.list("left out", left)
	u.list("added", minus(roots, old))
	u.list("removed", append(minus(old, roots), gone...))
	return nil
}

// read answers what is at an address. Who can change it on its way could name
// an authority of his own, so a URL must be https.
func (u update) read(address string) ([]byte, error) {
	if strings.HasPrefix(address, "http://") {
		return nil, errors.New("take the bundle over https, or from a file")
	}
	if !strings.HasPrefix(address, "https://") {
		return os.ReadFile(address)
	}
	answer, err := u.client.Get(address)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close() //nolint:errcheck // it was read
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", address, answer.Status)
	}
	return io.ReadAll(io.LimitReader(answer.Body, mostBytes))
}

// parse answers the root authorities in a PEM file by name, each once, and what
// is of no use: expired, of AWS's own tests, or no root, which the server sends.
func parse(text []byte, now time.Time) (roots, left []*x509.Certificate, err error) {
	unread := bytes.Count(text, []byte("-----BEGIN "))
	for ; ; unread-- {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, nil, fmt.Errorf("holds a %s", block.Type)
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		name := root.Subject.CommonName
		switch {
		case !root.IsCA || !root.BasicConstraintsValid:
			return nil, nil, fmt.Errorf("%s is no certificate authority", name)
		case !strings.HasPrefix(name, "Amazon RDS "):
			return nil, nil, fmt.Errorf("%s is no authority of Amazon RDS", name)
		case now.After(root.NotAfter), strings.Contains(name, " Beta "), strings.Contains(name, " Preview "),
			!bytes.Equal(root.RawIssuer, root.RawSubject):
			left = append(left, root)
		case !slices.ContainsFunc(roots, root.Equal):
			roots = append(roots, root)
		}
	}
	if unread != 0 { // package pem skips what it can't read
		return nil, nil, errors.New("holds a block that can't be read")
	}
	if roots == nil {
		return nil, nil, errors.New("holds no valid certificate")
	}
	slices.SortFunc(roots, func(a, b *x509.Certificate) int {
		return cmp.Or(cmp.Compare(a.Subject.CommonName, b.Subject.CommonName), a.SerialNumber.Cmp(b.SerialNumber))
	})
	return roots, left, nil
}

// render writes the file. Its head is for people, and for the test that holds
// it against the certificates.
func (u update) render(roots []*x509.Certificate, address string) []byte {
	source := u.source
	if source == "" && strings.HasPrefix(address, "https://") {
		source = address
	}
	source = cmp.Or(source, filepath.Base(address)) // the directory is nobody's business
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Certificate authorities of Amazon RDS, written by make update-ca.\n# Source: %s\n# Read: %s\n# Certificates: %d\n# First to expire: %s\n",
		source, day(u.now), len(roots), day(first(roots)))
	for _, root := range roots {
		fmt.Fprintf(&b, "# %s\n", root.Subject.CommonName)
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}) //nolint:errcheck // a buffer takes all
	}
	return b.Bytes()
}

func (u update) list(what string, certificates []*x509.Certificate) {
	for _, c := range certificates {
		fmt.Fprintf(u.out, "%s: %s, until %s\n", what, c.Subject.CommonName, day(c.NotAfter))
	}
}

// minus answers those of a that are not in b.
func minus(a, b []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(a), func(c *x509.Certificate) bool { return slices.ContainsFunc(b, c.Equal) })
}

func first(roots []*x509.Certificate) time.Time {
	return slices.MinFunc(roots, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
