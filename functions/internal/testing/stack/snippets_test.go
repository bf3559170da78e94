package stack

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/testing/docs"
)

// read has snippets.py read a snippet, and returns what it prints.
func read(t *testing.T, kind, text string) ([]byte, error) {
	t.Helper()
	python := root + "/.venv/snippets/bin/python"
	if _, err := os.Stat(python); errors.Is(err, os.ErrNotExist) && os.Getenv("STACK_TOOLS") != "required" {
		t.Skip("no .venv/snippets; scripts/venv.sh snippets installs it")
	}
	command := exec.Command(python, "snippets.py", kind)
	command.Stdin = strings.NewReader(text)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return nil, errors.New(tail(stderr.String(), 1000))
	}
	return stdout.Bytes(), nil
}

func snippets(t *testing.T, language, with string) (found []docs.Block) {
	t.Helper()
	all, err := docs.Blocks(language)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if strings.Contains(b.Text, with) {
			found = append(found, b)
		}
	}
	if len(found) == 0 {
		t.Fatalf("no %s with %s", language, with)
	}
	return found
}

// A reader that takes everything proves nothing.
func TestTheReadersRefuseWhatIsWrong(t *testing.T) {
	for _, wrong := range [][2]string{
		{"hcl", "resource \"a\" \"b\" {\n  c = \n"},
		{"kubernetes", "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: a}\nspec: {scedule: x}\n"},
		{"powershell", "$a = (Get-Date\n"},
		{"powershell", "Get-ChildItem | ForEach-Object { $_ \n"},
	} {
		if _, err := read(t, wrong[0], wrong[1]); err == nil {
			t.Errorf("%s is taken:\n%s", wrong[0], wrong[1])
		}
	}
}

// Terraform's own parser and formatter read it where it is installed; a reader from
// PyPI does elsewhere. With a provider at hand, terraform validate takes it too: 1.11
// with version 5.100 of that of AWS did.
func TestTheTerraformGivesParametersThatThereAre(t *testing.T) {
	text, err := os.ReadFile(root + "/scripts/package/main.go") // the two of a release
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range snippets(t, "hcl", "aws_cloudformation_stack") {
		out, err := read(t, "hcl", b.Text)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(out) || !bytes.Contains(out, []byte("aws_cloudformation_stack")) {
			t.Errorf("it is read as %s", out)
		}
		if terraform, err := exec.LookPath("terraform"); err == nil {
			format := exec.Command(terraform, "fmt", "-check", "-diff", "-")
			format.Stdin = strings.NewReader(b.Text)
			if out, err := format.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
		given := regexp.MustCompile(`(?m)^    ([A-Z]\w+) +=`).FindAllStringSubmatch(b.Text, -1)
		parameters, named := load(t).Parameters, map[string]bool{}
		for _, m := range given {
			named[m[1]] = true
			if _, ok := parameters[m[1]]; !ok && !bytes.Contains(text, []byte("\n  "+m[1]+":\n")) {
				t.Errorf("there is no parameter %s", m[1])
			}
		}
		if !named["CodeBucket"] || !named["SecretArn"] {
			t.Errorf("only %v", named)
		}
	}
}

// By kubernetes-validate, which has the schemas of Kubernetes, strictly: a field that
// they do not know is an error.
func TestTheCronJobIsOneOfKubernetes(t *testing.T) {
	for _, b := range snippets(t, "yaml", "kind: CronJob") {
		if _, err := read(t, "kubernetes", b.Text); err != nil {
			t.Errorf("%v\n%s", err, b.Text)
		}
	}
}

// By cfn-lint, with values for what readers put in.
func TestTheTaskOfECSIsSound(t *testing.T) {
	needTools(t)
	for _, b := range snippets(t, "yaml", "AWS::ECS::TaskDefinition") {
		b.Text = strings.NewReplacer("<account>", "123456789012", "<subnet>", "subnet-0123456789abcdef0", "<security-group>", "sg-0123456789abcdef0",
			"<secret>", "secret", "<host>", "db.example.org", "<region>", "us-east-1", "<task>", "task", "<execution>", "execution", "<scheduler>", "scheduler", "<cluster>", "cluster", "<image>", "image").Replace(b.Text)
		path := filepath.Join(t.TempDir(), "ecs.yaml")
		if err := os.WriteFile(path, []byte(b.Text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(tools+"cfn-lint", path).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// By PowerShell's own parser where there is one, else by the grammar of tree-sitter. No
// PowerShell has run them yet.
func TestPowerShellReadsTheCommands(t *testing.T) {
	const parse = `$errors = $null
[void][System.Management.Automation.Language.Parser]::ParseInput([Console]::In.ReadToEnd(), [ref]$null, [ref]$errors)
$errors | ForEach-Object { [Console]::Error.WriteLine($_) }
exit $errors.Count`
	shell, none := exec.LookPath("pwsh")
	blocks := append(snippets(t, "powershell", ""), snippets(t, "sh", "")...)
	for _, b := range blocks {
		if none == nil {
			command := exec.Command(shell, "-NoProfile", "-NonInteractive", "-Command", parse)
			command.Stdin = strings.NewReader(b.Text)
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("%s, %s: %v\n%s", b.Page, b.Heading, err, out)
			}
			continue
		}
		if _, err := read(t, "powershell", b.Text); err != nil {
			t.Errorf("%s, %s: %v", b.Page, b.Heading, err)
		}
	}
}

// The link for the console names parameters that a release's template has.
func TestTheLinkForTheConsoleNamesParametersThatThereAre(t *testing.T) {
	packaged, err := os.ReadFile(root + "/scripts/package/main.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range snippets(t, "text", "console.aws.amazon.com") {
		_, query, _ := strings.Cut(strings.TrimSpace(b.Text), "#/stacks/create/review?")
		values, err := url.ParseQuery(query)
		if err != nil || values.Get("stackName") == "" || !strings.HasSuffix(values.Get("templateURL"), "/purge-tokens.yaml") {
			t.Errorf("%v, %v", values, err)
		}
		for name := range values {
			if name, ok := strings.CutPrefix(name, "param_"); ok {
				if _, ok := load(t).Parameters[name]; !ok && !bytes.Contains(packaged, []byte("\n  "+name+":\n")) {
					t.Errorf("there is no parameter %s", name)
				}
			}
		}
	}
}

// What the Serverless Application Repository asks of an application.
func TestTheTemplateSaysWhatTheRepositoryOfApplicationsAsks(t *testing.T) {
	page, err := docs.Page("template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, metadata, _ := strings.Cut(page, "  AWS::ServerlessRepo::Application:\n")
	for field, pattern := range map[string]string{
		"Name": `[A-Za-z0-9-]{1,140}`, "Description": `.{1,256}`, "Author": `[A-Za-z0-9]([A-Za-z0-9-]{0,125}[A-Za-z0-9])?`,
		"SpdxLicenseId": `Apache-2\.0`, "Labels": `\[[a-z-]+(, [a-z-]+)*\]`,
	} {
		if !regexp.MustCompile(`(?m)\A(    .*\n)*?    ` + field + `: ` + pattern + `$`).MatchString(metadata) {
			t.Errorf("no good %s", field)
		}
	}
}
