package docs

import (
	"fmt"
	"strings"

	"edfi-token-purge/functions/internal/purge"
)

// WithFindings returns a page's text with its two tables of findings made anew
// from purge.Kinds. Each table stands between two comments.
func WithFindings(page string) (string, error) {
	for _, table := range []struct {
		name  string
		check bool
	}{{"run", false}, {"check", true}} {
		begin, end := "<!-- findings: "+table.name+" -->\n", "<!-- end of findings -->\n"
		before, rest, ok := strings.Cut(page, begin)
		_, after, closed := strings.Cut(rest, end)
		if !ok || !closed {
			return "", fmt.Errorf("no table between %q and %q", begin, end)
		}
		page = before + begin + "\n" + findings(table.check) + "\n" + end + after
	}
	return page, nil
}

// findings returns one of the tables. Neighbours that say the same share a row.
func findings(check bool) string {
	var table strings.Builder
	table.WriteString("| finding | level | what it means and what to do |\n|---|---|---|\n")
	codes, last := "", ""
	for _, k := range purge.Kinds {
		if k.Check != check {
			continue
		}
		level := k.Level
		if k.Or != "" {
			level += ", " + k.Or
		}
		says := fmt.Sprintf(" | %s | %s |\n", level, k.Mend)
		if says == last {
			codes += ", `" + k.Code + "`"
			continue
		}
		table.WriteString(codes + last)
		codes, last = "| `"+k.Code+"`", says
	}
	return table.String() + codes + last
}
