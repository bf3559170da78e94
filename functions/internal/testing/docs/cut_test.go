package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// repository is a new one with the scripts of a release and a CHANGELOG.
func repository(t *testing.T, changelog string) (dir string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil && os.Getenv("CI") == "" {
		t.Skip("git is not installed; make test says so")
	}
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "scripts"), 0o700); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"CHANGELOG.md": changelog, "scripts/cut.sh": page(t, "scripts/cut.sh"), "scripts/notes.sh": page(t, "scripts/notes.sh")}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	in(t, dir, "git", "init", "--quiet")
	in(t, dir, "git", "add", ".")
	in(t, dir, "git", "commit", "--quiet", "--message", "Begin")
	return dir
}

// in runs a command in a directory, and returns what it prints.
func in(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := try(dir, args...)
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return out
}

func try(dir string, args ...string) (string, error) {
	command := exec.Command(args[0], args[1:]...)
	command.Dir = dir
	command.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	out, err := command.CombinedOutput()
	return string(out), err
}

func TestACutReleaseHasItsSectionAndItsTag(t *testing.T) {
	const head = "# Changelog\n\n## [Unreleased]\n"
	dir := repository(t, head+"\n### Added\n\n- A thing.\n\n## [1.2.2] - 2026-01-01\n\n- An older thing.\n")
	in(t, dir, "scripts/cut.sh", "v1.10.0")
	if tag := in(t, dir, "git", "describe", "--exact-match"); tag != "v1.10.0\n" {
		t.Errorf("the tag is %s", tag)
	}
	text, err := os.ReadFile(filepath.Join(dir, "CHANGELOG.md"))
	if want := regexp.MustCompile(`^# Changelog\n\n## \[Unreleased\]\n\n## \[1\.10\.0\] - \d{4}-\d\d-\d\d\n\n### Added\n`); err != nil || !want.Match(text) {
		t.Errorf("%v\n%s", err, text)
	}
	for version, want := range map[string]string{"1.10.0": "### Added\n\n- A thing.\n", "1.2.2": "- An older thing.\n", "1.2": "", "Unreleased": ""} {
		if notes := in(t, dir, "scripts/notes.sh", version); notes != want {
			t.Errorf("the notes of %s are %q", version, notes)
		}
	}

	// Nothing is cut again, or out of order, or of nothing.
	refused := func(version, why string) {
		t.Helper()
		if out, err := try(dir, "scripts/cut.sh", version); err == nil || !strings.Contains(out, why) {
			t.Errorf("%s: %v\n%s", version, err, out)
		}
	}
	refused("v1.11.0", "says nothing under Unreleased")
	more := strings.Replace(string(text), "## [Unreleased]\n", "## [Unreleased]\n\n- More.\n", 1)
	if err := os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("v1.11.0", "not committed")
	in(t, dir, "git", "commit", "--quiet", "--all", "--message", "More")
	for _, version := range []string{"v1.10.0", "v1.9.9"} {
		refused(version, "does not come after v1.10.0")
	}
	for _, version := range []string{"", "1.11.0", "v1.11", "v1.11.0.1", "v01.11.0", "latest"} {
		refused(version, "needs a semantic version")
	}
	in(t, dir, "scripts/cut.sh", "v1.10.1")
}

// Without Go, or with one too old, make says so in one sentence and does nothing.
func TestMakeSaysWhichGoItNeeds(t *testing.T) {
	old := filepath.Join(t.TempDir(), "go")
	const script = "#!/bin/sh\ncase $1 in version) echo go version go1.19.8 linux/amd64 ;; *) echo 'go: errors parsing go.mod: invalid go version' >&2; exit 1 ;; esac\n"
	if err := os.WriteFile(old, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	wanted := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(page(t, "go.mod"))[1]
	for _, target := range []string{"demo", "test", "local", "deploy", "lint", "validate"} {
		for program, why := range map[string]string{"/nowhere/go": "there is none in PATH", old: "here is go1.19.8"} {
			out, err := try(Root(), "make", "--no-print-directory", target, "GO="+program)
			first, _, _ := strings.Cut(out, "\n")
			if err == nil || !strings.HasPrefix(first, "This needs Go "+wanted+" or later, and "+why) || strings.Count(out, "\n") > 2 {
				t.Errorf("make %s: %v\n%s", target, err, out)
			}
		}
	}
}
