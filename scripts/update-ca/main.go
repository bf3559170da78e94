// Command update-ca renews the root certificates of Amazon RDS that the function
// has built in, functions/internal/roots/rds.pem.
//
//	update-ca [-source TEXT] [-published DATE] ADDRESS-OR-FILE... BUNDLE
//
// It takes every root of an AWS region, of bundles in PEM or of program texts that
// quote one, and says what comes and what goes. It refuses a source that
// would leave out a region that there was.
package main

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	source := flag.String("source", "", "what to say of the source, instead of its address")
	published := flag.String("published", "", "the source's date, where the source doesn't tell")
	flag.Parse()
	last := flag.NArg() - 1
	if last < 1 {
		fmt.Fprintln(os.Stderr, "usage: update-ca [-source TEXT] [-published DATE] ADDRESS-OR-FILE... BUNDLE")
		os.Exit(2)
	}
	if err := update(flag.Args()[:last], flag.Arg(last), *source, *published, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "update-ca:", err)
		os.Exit(1)
	}
}

func update(sources []string, bundle, source, published string, out io.Writer) error {
	var text []byte
	var date string // of the latest
	for _, from := range sources {
		part, changed, err := read(from)
		if err != nil {
			return err
		}
		text, date = append(append(text, part...), '\n'), max(date, changed)
	}
	from := strings.Join(sources, ", ")
	fresh, err := parse(text, out)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	had, err := os.ReadFile(bundle)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	old, err := parse(had, io.Discard)
	if err != nil && had != nil {
		return fmt.Errorf("%s: %w", bundle, err)
	}
	for _, region := range regions(old) {
		if !slices.Contains(regions(fresh), region) {
			return fmt.Errorf("%s has no root for %s, which the bundle has: nothing is changed", from, region)
		}
	}
	for _, root := range fresh {
		if !slices.ContainsFunc(old, root.Equal) {
			fmt.Fprintln(out, "new: ", root.Subject.CommonName)
		}
	}
	for _, root := range old {
		if !slices.ContainsFunc(fresh, root.Equal) {
			fmt.Fprintln(out, "gone:", root.Subject.CommonName)
		}
	}
	written := write(fresh, cmp.Or(source, from), cmp.Or(published, date))
	fmt.Fprint(out, written[:strings.Index(written, "\n\n")+1])
	return os.WriteFile(bundle, []byte(written), 0o644)
}

// read answers the text at an address or in a file, and its date.
func read(from string) (text []byte, date string, err error) {
	if !strings.HasPrefix(from, "https://") && !strings.HasPrefix(from, "http://127.0.0.1:") {
		info, err := os.Stat(from)
		if err != nil {
			return nil, "", err
		}
		text, err = os.ReadFile(from)
		return text, info.ModTime().UTC().Format(time.DateOnly), err
	}
	client := http.Client{Timeout: time.Minute}
	answer, err := client.Get(from)
	if err != nil {
		return nil, "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s answers %s", from, answer.Status)
	}
	changed, err := http.ParseTime(answer.Header.Get("Last-Modified"))
	if err != nil {
		changed = time.Now()
	}
	text, err = io.ReadAll(io.LimitReader(answer.Body, 10<<20))
	return text, changed.UTC().Format(time.DateOnly), err
}

// regional is the name of a root that a region's databases present certificates
// of. Others are for tests, or of the generation that ended in 2024.
var regional = regexp.MustCompile(`^Amazon RDS ([a-z]{2}(?:-[a-z]+)+-[0-9]+) Root CA `)

// quoted is what a program puts between two lines of a text: their end, the
// quotes, and what joins them.
var quoted = regexp.MustCompile(`\\n['"]\s*\+?\s*['"]?|['"]`)

// parse answers the roots in text, by name.
func parse(text []byte, out io.Writer) (roots []*x509.Certificate, err error) {
	text = quoted.ReplaceAll(text, []byte("\n"))
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		name := root.Subject.CommonName
		switch {
		case !regional.MatchString(name) || time.Now().After(root.NotAfter):
			fmt.Fprintf(out, "left out: %s, which ends %s\n", name, root.NotAfter.Format(time.DateOnly))
		case !root.IsCA || root.CheckSignatureFrom(root) != nil:
			return nil, fmt.Errorf("%q is no root", name)
		case !slices.ContainsFunc(roots, root.Equal):
			roots = append(roots, root)
		}
	}
	if roots == nil {
		return nil, errors.New("holds no root of a region")
	}
	slices.SortFunc(roots, func(a, b *x509.Certificate) int {
		return cmp.Compare(a.Subject.CommonName, b.Subject.CommonName)
	})
	return roots, nil
}

func regions(roots []*x509.Certificate) (all []string) {
	for _, root := range roots {
		all = append(all, regional.FindStringSubmatch(root.Subject.CommonName)[1])
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func write(roots []*x509.Certificate, source, published string) string {
	first := slices.MinFunc(roots, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	var b strings.Builder
	fmt.Fprintf(&b, "# Root certificates of Amazon RDS, by make update-ca.\n# Source: %s\n# Published: %s\n# Certificates: %d, the first ends %s\n# Regions: %s\n",
		source, published, len(roots), first.NotAfter.Format(time.DateOnly), strings.Join(regions(roots), " "))
	for _, root := range roots {
		fmt.Fprintf(&b, "\n# %s\n", root.Subject.CommonName)
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}) //nolint:errcheck // to memory
	}
	return b.String()
}
