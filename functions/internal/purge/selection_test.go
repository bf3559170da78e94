package purge

import (
	"slices"
	"strings"
	"testing"
)

func resolved(t *testing.T, list string, fold bool, catalogue ...string) []string {
	t.Helper()
	s, err := ParseSelection(list)
	if err != nil {
		t.Fatal(err)
	}
	var listed []Database
	for _, name := range catalogue {
		listed = append(listed, Database{Name: name})
	}
	names := []string{}
	for _, d := range s.Resolve(listed, fold) {
		mark := ""
		if d.Matched {
			mark = "~"
		}
		names = append(names, mark+d.Name)
		if !s.Allows(d.Name, fold) {
			t.Errorf("%q resolves to %q and does not allow it", list, d.Name)
		}
	}
	return names
}

func TestSelectionsResolve(t *testing.T) {
	catalogue := []string{"EdFi_Admin", "EdFi_Admin_T1", "edfi_admin_t2", "admin_a", "admin_template", "a.b", "axb", "x[1]", "postgres"}
	for _, c := range []struct {
		list string
		fold bool
		want string
	}{
		{"EdFi_Admin", false, "EdFi_Admin"},
		{"Nowhere,EdFi_Admin", false, "Nowhere EdFi_Admin"},
		{"EdFi_Admin*", false, "~EdFi_Admin ~EdFi_Admin_T1"},
		{"EdFi_Admin*", true, "~EdFi_Admin ~EdFi_Admin_T1 ~edfi_admin_t2"},
		{"EdFi_Admin*,admin_*,!admin_template", false, "~EdFi_Admin ~EdFi_Admin_T1 ~admin_a"},
		{"*, !*template, !postgres, !EdFi*", false, "~edfi_admin_t2 ~admin_a ~a.b ~axb ~x[1]"},
		{"a?b", false, "~a.b ~axb"},
		{"a.b", false, "a.b"},
		{"x[*]", false, "~x[1]"},
		{"EdFi_Admin,EdFi_*", false, "EdFi_Admin ~EdFi_Admin_T1"},
		{"edfi_admin,EdFi_*", true, "edfi_admin ~EdFi_Admin_T1 ~edfi_admin_t2"},
		{"EdFi_Admin,!edfi_admin", false, "EdFi_Admin"},
		{"EdFi_Admin,!edfi_admin", true, ""},
		{"nothing*", false, ""},
	} {
		if got := strings.Join(resolved(t, c.list, c.fold, catalogue...), " "); got != c.want {
			t.Errorf("%s, fold %t: %q, want %q", c.list, c.fold, got, c.want)
		}
	}
}

func TestBadSelectionsAreRefused(t *testing.T) {
	for _, list := range []string{"", " ", ",", "A,,B", "!", "!A", "!A,!B*", "A\nB", "A!B", "!!A", "A,h://B"} {
		if _, err := ParseSelection(list); err == nil {
			t.Errorf("%q: no error", list)
		}
	}
}

func TestASelectionAllowsWhatItWouldResolveTo(t *testing.T) {
	s, err := ParseSelection("EdFi_Admin*,!EdFi_Admin_Old")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"EdFi_Admin_New": true, "EdFi_Admin_Old": false, "edfi_admin_new": false, "postgres": false} {
		if s.Allows(name, false) != want {
			t.Errorf("%s", name)
		}
	}
	if !s.HasPatterns() || Select("a").HasPatterns() || !slices.Contains(resolved(t, "a", false), "a") {
		t.Error("patterns")
	}
}
