package stack

import (
	"os/exec"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/testing/docs"
)

// The commands of README.md and RUNBOOK.md that need AWS, as they are written, on
// the stack that they speak of.
func TestTheDocumentedCommandsWork(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	blocks, err := docs.Blocks("sh")
	if err != nil {
		t.Fatal(err)
	}
	const name = "purge-tokens-prod"
	c.create(t, name, c.prepare(t), map[string]string{"SecretArn": required["SecretArn"]})
	c.add(name, fakeFunction{answers: []answer{complete(0)}})
	// One script, for a block uses what another one set; what removes the stack
	// comes last.
	//
	// The CLI goes where a queue's URL says, unless it is told so outright.
	script, last := "set -euo pipefail\naws() { command aws \"$@\" --endpoint-url \"$AWS_ENDPOINT_URL\"; }\n", ""
	ran := 0
	for _, b := range blocks {
		if b.Kind() != docs.Cloud {
			continue
		}
		ran++
		if text := "echo '# " + b.Page + "'\n" + b.Text; strings.Contains(b.Text, "delete-stack") {
			last += text
		} else {
			script += text
		}
	}
	if ran < 4 || last == "" {
		t.Fatalf("%d blocks of commands", ran)
	}
	command := exec.Command("bash", "-c", script+last)
	command.Dir = root
	command.Env = append(c.env(), "YES=1", "MAKEFLAGS=--no-print-directory")
	out, err := command.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	same(t, "asked", c.asked(name), `["{\"action\":\"check\"}", "{\"action\":\"dry-run\"}", "{\"action\":\"purge\"}"]`)
}
