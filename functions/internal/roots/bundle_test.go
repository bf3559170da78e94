package roots

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func bundle(t *testing.T) (roots []*x509.Certificate) {
	t.Helper()
	for rest := rds; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return roots
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
}

// stated answers what the head of the bundle says of it.
func stated(t *testing.T, what string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^# ` + what + `: (.+)$`).FindSubmatch(rds)
	if m == nil {
		t.Fatalf("the bundle's head has no %s", what)
	}
	return string(m[1])
}

func TestNoRootEndsWithinAYear(t *testing.T) {
	for _, root := range bundle(t) {
		if time.Until(root.NotAfter) < 365*24*time.Hour {
			t.Errorf("%s ends %s: make update-ca", root.Subject.CommonName, root.NotAfter.Format(time.DateOnly))
		}
	}
}

func TestTheBundlesHeadIsTrue(t *testing.T) {
	roots := bundle(t)
	first := slices.MinFunc(roots, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	if want := strconv.Itoa(len(roots)) + ", the first ends " + first.NotAfter.Format(time.DateOnly); stated(t, "Certificates") != want {
		t.Errorf("certificates: %s, not %s", stated(t, "Certificates"), want)
	}
	if published, err := time.Parse(time.DateOnly, stated(t, "Published")); err != nil || published.After(time.Now()) {
		t.Errorf("published %s", stated(t, "Published"))
	}
	if stated(t, "Source") == "" {
		t.Error("no source")
	}
	var regions []string
	name := regexp.MustCompile(`^Amazon RDS (\S+-[0-9]) Root CA (RSA2048|RSA4096|ECC384) G1$`)
	for _, root := range roots {
		m := name.FindStringSubmatch(root.Subject.CommonName)
		if m == nil {
			t.Fatalf("%s is the root of no region", root.Subject.CommonName)
		}
		regions = append(regions, m[1])
	}
	slices.Sort(regions)
	if len(regions) != 3*len(slices.Compact(slices.Clone(regions))) {
		t.Errorf("a region has three roots, not %d of %d", len(regions), len(slices.Compact(slices.Clone(regions))))
	}
	if want := strings.Join(slices.Compact(regions), " "); stated(t, "Regions") != want {
		t.Errorf("regions: %s, not %s", stated(t, "Regions"), want)
	}
}

// The regions of AWS, with those of China and the government, which have bundles
// of their own.
var allRegions = strings.Fields(`
af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2 ap-southeast-1
ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 ca-central-1 ca-west-1
cn-north-1 cn-northwest-1 eu-central-1 eu-central-2 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3
il-central-1 me-central-1 me-south-1 mx-central-1 sa-east-1 us-east-1 us-east-2 us-gov-east-1 us-gov-west-1 us-west-1
us-west-2`)

func TestTheReadmeNamesEveryRegionThatTheBundleLacks(t *testing.T) {
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)### Certificates\n(.*?)\n##").FindSubmatch(readme)
	if m == nil {
		t.Fatal("the README has no section Certificates")
	}
	var named []string
	for _, span := range regexp.MustCompile("`([a-z]{2}(?:-[a-z]+)+-[0-9])`").FindAllSubmatch(m[1], -1) {
		named = append(named, string(span[1]))
	}
	slices.Sort(named)
	lacks := slices.DeleteFunc(slices.Clone(allRegions), func(region string) bool {
		return slices.Contains(strings.Fields(stated(t, "Regions")), region)
	})
	if !slices.Equal(named, lacks) {
		t.Errorf("the README names %q, the bundle lacks %q", named, lacks)
	}
	count, _, _ := strings.Cut(stated(t, "Certificates"), ",")
	text := strings.Join(strings.Fields(string(m[1])), " ")
	for _, want := range []string{stated(t, "Source"), stated(t, "Published"), count + " of them"} {
		if !strings.Contains(text, want) {
			t.Errorf("the README does not say %q of the bundle", want)
		}
	}
}
