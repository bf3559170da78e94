package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// "$(a command)" is the same in all three shells, and so are quotes without what
	// one of them would look into.
	substitution = regexp.MustCompile(`"\$\(((?:[^()"']|"[^"]*"|'[^']*')*)\)"`)
	quoted       = regexp.MustCompile("\"[^\"$`\\\\!]*\"|'[^'\"]*'")
	plainWords   = regexp.MustCompile(`^[a-z][A-Za-z0-9_./-]*( [A-Za-z0-9_./:=+-][A-Za-z0-9_./:=+@-]*)*$`)
)

// portable tells whether a line does the same in bash, zsh and PowerShell. It is
// strict: no variable, no pipe, no comment (an interactive zsh knows none), no
// comma or wildcard without quotes, no continued line.
func portable(line string) bool {
	for _, m := range substitution.FindAllStringSubmatch(line, -1) {
		if !portable(m[1]) {
			return false
		}
	}
	return plainWords.MatchString(quoted.ReplaceAllString(substitution.ReplaceAllString(line, "Q"), "Q"))
}

func TestPortableTellsTheShellsApart(t *testing.T) {
	for line, want := range map[string]bool{
		`make deploy STAGE=prod`: true,
		`aws a --query "Stacks[0].Outputs[?OutputKey=='X'].OutputValue" --output text`: true,
		`aws b --name "$(aws a --query "Stacks[0]" --output text)" --other-name c`:     true,
		`psql --command '\password me'`:                                                true,
		`make demo # a comment`:                                                        false,
		`aws a "!b"`:                                                                   false,
		`aws a --query Stacks[0]`:                                                      false,
		`aws a A=b,c`:                                                                  false,
		`aws a \`:                                                                      false,
		`aws a "$B"`:                                                                   false,
		`A=b aws a`:                                                                    false,
		`export A=b`:                                                                   true, // the next test refuses it
		`aws a '{"a": 1}'`:                                                             false,
		`aws a && aws b`:                                                               false,
		`aws b --name "$(aws a $B)"`:                                                   false,
	} {
		if portable(line) != want {
			t.Errorf("%s: %v", line, !want)
		}
	}
}

func TestEveryCommandPastesIntoEveryShell(t *testing.T) {
	blocks, err := Blocks("sh", "bash", "powershell")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for i, b := range blocks {
		switch b.Language {
		case "sh":
			for line := range strings.Lines(b.Text) {
				lines++
				if line = strings.TrimSuffix(line, "\n"); !portable(line) || strings.HasPrefix(line, "export ") {
					t.Errorf("%s, %s: not the same in bash, zsh and PowerShell: %s", b.Page, b.Heading, line)
				}
			}
		case "bash":
			if i+1 == len(blocks) || blocks[i+1].Language != "powershell" || blocks[i+1].Heading != b.Heading {
				t.Errorf("%s, %s: commands for bash, and none for PowerShell after them:\n%s", b.Page, b.Heading, b.Text)
			}
		case "powershell":
			if onlyThere := strings.Contains(b.Heading, "Windows"); !onlyThere && (i == 0 || blocks[i-1].Language != "bash") {
				t.Errorf("%s, %s: commands for PowerShell, and none for bash before them:\n%s", b.Page, b.Heading, b.Text)
			}
		}
	}
	if lines < 10 {
		t.Errorf("only %d lines", lines)
	}
}

// A command in the middle of a sentence is pasted too.
func TestACommandInTheTextPastesIntoEveryShell(t *testing.T) {
	span := regexp.MustCompile("`([^`]+)`")
	command := regexp.MustCompile(`^(aws|gh|git|make|psql|purge-tokens|sam|sqlcmd|zip|export|[A-Z_]+=\S*) +[^ ]`)
	found := 0
	for _, from := range append(Pages, "SECURITY.md") {
		for _, m := range span.FindAllStringSubmatch(Prose(page(t, from)), -1) {
			text := strings.Join(strings.Fields(m[1]), " ")
			if !command.MatchString(text) {
				continue
			}
			if found++; !portable(text) || strings.HasPrefix(text, "export ") {
				t.Errorf("%s: not the same in bash, zsh and PowerShell: %s", from, text)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands", found)
	}
}

// What readers put in stands in <...> and between quotes: pasted as it is, it reaches
// the program, which refuses it. An example value would be taken.
func TestNoCommandRunsBeforeItsPlaceholdersAreFilled(t *testing.T) {
	blocks, err := Blocks("sh", "bash", "powershell")
	if err != nil {
		t.Fatal(err)
	}
	placeholder := regexp.MustCompile(`<[a-z][a-z0-9-]*>`)
	example := regexp.MustCompile(`123456789012|0123456789abcdef|example\.(org|com)|[A-Z]{2,}/[A-Z]{2,}|:password@`)
	found := 0
	for _, b := range blocks {
		found += len(placeholder.FindAllString(b.Text, -1))
		for _, bare := range placeholder.FindAllString(regexp.MustCompile(`'[^'\n]*'|"[^"\n]*"`).ReplaceAllString(b.Text, "Q"), -1) {
			t.Errorf("%s, %s: %s without quotes", b.Page, b.Heading, bare)
		}
		if value := example.FindString(b.Text); value != "" {
			t.Errorf("%s, %s: the example %s would be taken as it is", b.Page, b.Heading, value)
		}
	}
	if found < 10 {
		t.Errorf("only %d placeholders", found)
	}
}

func TestTheShellsReadTheCommands(t *testing.T) {
	blocks, err := Commands()
	if err != nil {
		t.Fatal(err)
	}
	for _, shell := range []string{"bash", "zsh"} {
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("no %s here", shell)
			continue
		}
		for _, b := range blocks {
			check := exec.Command(shell, "-n")
			check.Stdin = strings.NewReader(b.Text)
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s, %s: %s: %v\n%s", b.Page, b.Heading, shell, err, out)
			}
		}
	}
}

// Pasted into each shell that is installed, the commands call the same programs with
// the same arguments. Programs that only write down what they are given stand in.
func TestTheCommandsAreTheSameInEveryShell(t *testing.T) {
	blocks, err := Blocks("sh")
	if err != nil {
		t.Fatal(err)
	}
	pasted, programs, dir := "", t.TempDir(), t.TempDir()
	for _, b := range blocks {
		pasted += b.Text
	}
	const program = "#!/bin/sh\n{ printf '%s' \"${0##*/}\"; for a; do printf ' [%s]' \"$a\"; done; echo; } >>\"$CALLED\"\necho out\n"
	for _, path := range []string{programs + "/aws", programs + "/make", programs + "/cp", programs + "/purge-tokens"} {
		if err := os.WriteFile(path, []byte(program), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	calls := map[string]string{}
	for name, args := range map[string][]string{"bash": {"--norc", "-i"}, "zsh": {"-f", "-i"}, "pwsh": {"-NoProfile", "-NonInteractive", "-File", "-"}} {
		shell, err := exec.LookPath(name)
		if err != nil {
			t.Logf("no %s here", name)
			continue
		}
		command := exec.Command(shell, args...)
		command.Dir, command.Stdin = dir, strings.NewReader(pasted)
		command.Env = []string{"PATH=" + programs + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CALLED=" + filepath.Join(dir, name)}
		out, err := command.CombinedOutput()
		called, _ := os.ReadFile(filepath.Join(dir, name))
		if calls[name] = string(called); err != nil || calls[name] == "" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	for name, called := range calls {
		if called != calls["bash"] {
			t.Errorf("%s called\n%s\nbash called\n%s", name, called, calls["bash"])
		}
	}
	if n := strings.Count(calls["bash"], "\n"); n < strings.Count(pasted, "\n") {
		t.Errorf("only %d calls", n)
	}
}
