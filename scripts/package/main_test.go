package main

import (
	"os"
	"strings"
	"testing"
)

func TestTheCodeComesFromABucket(t *testing.T) {
	text, err := os.ReadFile("../../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	template := string(text)
	got, err := packaged(template, "1.2.3", "0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\n  CodeBucket:\n", "\n  CodeKey:\n", "        Bucket: !Ref CodeBucket\n", "'purge-tokens_1.2.3_lambda_${Architecture}.zip'",
		"      Version: v1.2.3\n      Commit: 0123456789ab\n", "    SemanticVersion: 1.2.3\n", "[CodeBucket, CodeKey]",
	} {
		if strings.Count(got, want) != 1 {
			t.Errorf("it has %d of %q", strings.Count(got, want), want)
		}
	}
	for _, gone := range []string{"CodeUri: .\n", "BuildMethod", "Version: dev", "make deploy\n"} {
		if strings.Contains(got, gone) {
			t.Errorf("it still has %q", gone)
		}
	}
	// A template that is not as expected is no template of a release.
	for name, other := range map[string]string{
		"without CodeUri":     strings.Replace(template, "      CodeUri: .\n", "", 1),
		"with two mappings":   strings.Replace(template, "\nConditions:\n", "\nConditions:\n\nConditions:\n", 1),
		"already a release's": got,
	} {
		if _, err := packaged(other, "1.2.3", "0123456789ab"); err == nil {
			t.Errorf("one %s is packaged", name)
		}
	}
}
