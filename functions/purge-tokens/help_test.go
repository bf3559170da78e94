package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/purge"
)

func TestTheHelpListsEverySettingWithItsDefault(t *testing.T) {
	var help strings.Builder
	if err := writeHelp(&help, nil, 0); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]string{}
	for _, s := range settings {
		known[s.name] = s.unset
	}
	readConfig(func(name string) string {
		if _, ok := known[name]; !ok && !strings.HasPrefix(name, "AWS_") {
			t.Errorf("the help has no %s", name)
		}
		return ""
	})
	// One table says the defaults, the other must not say others.
	row := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| `?([^|`]*?)`? \\|")
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		first, _, _ := strings.Cut(m[2], ",")
		first, _, _ = strings.Cut(first, ";")
		if unset, ok := known[m[1]]; !ok || !strings.Contains(m[2], "secret") && !strings.HasPrefix(unset, first) {
			t.Errorf("%s is %q in the help, %q in the page", m[1], unset, m[2])
		}
	}
	for line := range strings.Lines(help.String()) {
		if len(line) > 81 {
			t.Errorf("80 columns are too few for %q", line)
		}
	}
}

func TestTheHelpTellsOfEachFinding(t *testing.T) {
	for _, k := range purge.Kinds {
		var help strings.Builder
		if err := writeHelp(&help, []string{"findings", k.Code}, 80); err != nil || !strings.HasPrefix(help.String(), k.Code+" ("+k.Level) {
			t.Errorf("%s: %s", k.Code, help.String())
		}
	}
	for about, want := range map[string]string{"findings none-such": "none-such", "nothing": "help findings CODE"} {
		if err := writeHelp(new(strings.Builder), strings.Fields(about), 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", about, err)
		}
	}
}
