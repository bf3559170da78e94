package roots

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/docs"
)

// regions are those that AWS SDK for Go v2 1.47.8 knows, in its partitions.json,
// but for the isolated ones of the United States and Europe.
const regions = `af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2
ap-southeast-1 ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 ca-central-1
ca-west-1 eu-central-1 eu-central-2 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3 il-central-1
me-central-1 me-south-1 me-west-1 mx-central-1 sa-east-1 sa-west-1 us-east-1 us-east-2 us-west-1 us-west-2
cn-north-1 cn-northwest-1 eusc-de-east-1 us-gov-east-1 us-gov-west-1`

// embedded returns the certificates that are built in.
func embedded(t *testing.T) (all []*x509.Certificate) {
	t.Helper()
	for rest := rds; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, root)
	}
}

func firstToExpire(all []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(all, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

func TestEveryEmbeddedRootIsAnAuthorityThatPoolTrusts(t *testing.T) {
	pool, err := Pool(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range embedded(t) {
		if !root.IsCA {
			t.Errorf("%s is no authority", root.Subject.CommonName)
		}
		opts := x509.VerifyOptions{Roots: pool, CurrentTime: root.NotAfter.Add(-time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if _, err := root.Verify(opts); err != nil {
			t.Errorf("%s: %v", root.Subject.CommonName, err)
		}
	}
}

func TestNoEmbeddedRootExpiresWithinAYear(t *testing.T) {
	if root := firstToExpire(embedded(t)); time.Now().AddDate(1, 0, 0).After(root.NotAfter) {
		t.Errorf("%s expires on %s: run make update-ca", root.Subject.CommonName, root.NotAfter.Format(time.DateOnly))
	}
}

// docs/tls.md says what the head of the file says, and that is true of the
// certificates.
func TestSourceDateAndNumberAreStatedAndTrue(t *testing.T) {
	all := embedded(t)
	head := regexp.MustCompile(`^#.*\n# Source: (.+)\n# Read: (.+)\n# Certificates: (.+)\n# First to expire: (.+)\n`).FindStringSubmatch(string(rds))
	if head == nil {
		t.Fatalf("the head is %q", rds[:300])
	}
	source, read, number, first := head[1], head[2], head[3], head[4]
	if number != fmt.Sprint(len(all)) || strings.Count(string(rds), "BEGIN CERTIFICATE") != len(all) {
		t.Errorf("%s certificates, and there are %d", number, len(all))
	}
	if is := firstToExpire(all).NotAfter.UTC().Format(time.DateOnly); first != is {
		t.Errorf("the first expires on %s, and not on %s", is, first)
	}
	on, err := time.Parse(time.DateOnly, read)
	if err != nil || on.After(time.Now()) {
		t.Errorf("read on %s, %v", read, err)
	}
	for _, root := range all {
		if root.NotBefore.After(on.AddDate(0, 0, 1)) {
			t.Errorf("%s is younger than the bundle, %s", root.Subject.CommonName, read)
		}
	}
	page := tlsPage(t)
	for _, fact := range []string{number + " certificates", source, first} {
		if !strings.Contains(page, fact) {
			t.Errorf("docs/tls.md does not say %q", fact)
		}
	}
}

func TestThePageNamesTheRegionsThatAreBuiltInAndThoseThatAreNot(t *testing.T) {
	var covered, lacking []string
	for _, root := range embedded(t) {
		m := regexp.MustCompile(`^Amazon RDS ([a-z]+-[a-z-]+-\d) Root CA \S+ G\d$`).FindStringSubmatch(root.Subject.CommonName)
		if m == nil {
			t.Errorf("%s names no region", root.Subject.CommonName)
		} else {
			covered = append(covered, m[1])
		}
	}
	slices.Sort(covered)
	covered = slices.Compact(covered)
	for _, region := range strings.Fields(regions) {
		if !slices.Contains(covered, region) {
			lacking = append(lacking, region)
		}
	}
	page := tlsPage(t)
	for title, want := range map[string][]string{"Built in": covered, "Not built in": lacking} {
		_, list, _ := strings.Cut(page, "- **"+title+":**")
		list, _, _ = strings.Cut(list, ".")
		var got []string
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(list, -1) {
			got = append(got, m[1])
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: docs/tls.md has %q, true is %q", title, got, want)
		}
	}
}

// tlsPage returns docs/tls.md with each paragraph on one line.
func tlsPage(t *testing.T) string {
	t.Helper()
	page, err := docs.Page("docs/tls.md")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`\n\s*(\w)`).ReplaceAllString(page, " $1")
}

func TestAFileWithoutCertificatesIsRefused(t *testing.T) {
	if _, err := Pool([]byte("nothing")); err == nil {
		t.Error("no error")
	}
}
