package main

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/testing/docs"
)

// The same source gives the same bytes, in a clone or in an unpacked archive, in any
// directory.
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
		files, err := filepath.Glob(filepath.Join(out, "bootstrap*")) // the one that picks, and one for each architecture
		if err != nil || len(files) != 3 {
			t.Fatalf("%q, %v", files, err)
		}
		hash := sha256.New()
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			hash.Write(text)
			if bytes.Contains(text, []byte(dir)) {
				t.Errorf("%s knows %s", filepath.Base(file), dir)
			}
		}
		sums[i] = [32]byte(hash.Sum(nil))
	}
	if sums[0] != sums[1] {
		t.Errorf("%x and %x", sums[0], sums[1])
	}
}

// SAM does not tell make which architecture is meant, so the package has both, by
// the names that uname gives them.
func TestThePackageRunsOnBothArchitectures(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	build := exec.Command("make", "--silent", "--directory", docs.Root(), "build-PurgeTokens", "ARTIFACTS_DIR="+out, "VERSION=v1.2.3", "COMMIT=0123456789ab")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for name, want := range map[string]elf.Machine{"aarch64": elf.EM_AARCH64, "x86_64": elf.EM_X86_64} {
		binary, err := elf.Open(filepath.Join(out, "bootstrap-"+name))
		if err != nil {
			t.Fatal(err)
		}
		defer binary.Close()
		if binary.Machine != want {
			t.Errorf("bootstrap-%s is for %s", name, binary.Machine)
		}
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux runs them")
	}
	text, err := exec.Command(filepath.Join(out, "bootstrap"), "version").CombinedOutput()
	if err != nil || !strings.Contains(string(text), "v1.2.3") {
		t.Errorf("%v\n%s", err, text)
	}
}
