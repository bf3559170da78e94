package main

import (
	"bytes"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"edfi-token-purge/functions/internal/testing/docs"
)

// Whoever builds the same source, in a clone or in an unpacked archive, wherever
// it is, gets the same bytes.
func TestTwoBuildsFromTwoDirectoriesHaveOneHash(t *testing.T) {
	t.Parallel()
	archive := t.TempDir()
	for _, name := range []string{"Makefile", "go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(docs.Root(), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(archive, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(archive, "functions"), os.DirFS(filepath.Join(docs.Root(), "functions"))); err != nil {
		t.Fatal(err)
	}
	var sums [2][32]byte
	for i, dir := range []string{docs.Root(), archive} {
		out := t.TempDir()
		build := exec.Command("make", "--silent", "--directory", dir, "build-PurgeTokens", "ARTIFACTS_DIR="+out,
			"VERSION=v1.2.3", "COMMIT=0123456789ab") // an archive has no git to ask
		if text, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		binary, err := os.ReadFile(filepath.Join(out, "bootstrap"))
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(binary)
		if bytes.Contains(binary, []byte(dir)) {
			t.Errorf("the binary knows %s", dir)
		}
	}
	if sums[0] != sums[1] {
		t.Errorf("%x and %x", sums[0], sums[1])
	}
}
