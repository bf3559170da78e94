package purge

import (
	"fmt"
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
		if !s.Filter(fold)(d.Name) {
			t.Errorf("%q resolves to %q and does not allow it", list, d.Name)
		}
	}
	return names
}

func TestSelectionsResolve(t *testing.T) {
	catalogue := []string{"EdFi_Admin", "EdFi_Admin_T1", "edfi_admin_t2", "admin_a", "admin_template", "a.b", "axb", "x[1]", "postgres", "c d "}
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
		{"*, !*template, !postgres, !EdFi*", false, "~edfi_admin_t2 ~admin_a ~a.b ~axb ~x[1] ~c d "},
		{"a?b", false, "~a.b ~axb"},
		{"a.b", false, "a.b"},
		{"x[*]", false, "~x[1]"},
		{"EdFi_Admin,EdFi_*", false, "EdFi_Admin ~EdFi_Admin_T1"},
		{"edfi_admin,EdFi_*", true, "edfi_admin ~EdFi_Admin_T1 ~edfi_admin_t2"},
		{"EdFi_Admin,!edfi_admin", false, "EdFi_Admin"},
		{"EdFi_Admin,!edfi_admin", true, ""},
		{"nothing*", false, ""},
		{"*_*_*", false, "~EdFi_Admin_T1 ~edfi_admin_t2"},
		{"**a?b**", false, "~a.b ~axb"},
		{"?", false, ""},
		{"a*b*b", false, ""},
		{"STRASSE*,GRÖẞE", true, "GRÖẞE"},
		{"c*,!c d", true, ""}, // the server has it with a blank at its end
		{"c*,!c d", false, "~c d "},
	} {
		if got := strings.Join(resolved(t, c.list, c.fold, catalogue...), " "); got != c.want {
			t.Errorf("%s, fold %t: %q, want %q", c.list, c.fold, got, c.want)
		}
	}
}

func TestBadSelectionsAreRefused(t *testing.T) {
	for _, list := range []string{
		"", " ", ",", "A,,B", "!", "!A", "!A,!B*", "A\nB", "A!B", "!!A", "A,h://B", "\xff", strings.Repeat("A,", 10_000) + "A",
		"host=h password=x", "Server=h;Database=d", "A,Password = x", "Data Source=h", "user:pw@h", "a;b=c", "A\u0085B", "!pwd=x",
		"my.secret=x", "token = x", "AccountKey=x", "PassPhrase: x", "PGPASSWORD=x", "DB_PASS=x", "A,--password x", "tool -Password x", "--api-key x", "joe/pw@h",
		"postgres%3A%2F%2Fjoe%3Apw%40h", "postgres%3a//h", "//joe@h/d", "jdbc:postgresql:d", "DSN=x", "Driver={x}", "Trusted_Connection=yes", "service=x",
	} {
		if _, err := ParseSelection(list); err == nil {
			t.Errorf("%q: no error", list)
		}
	}
}

// An unusual name is one all the same.
func TestUnusualNamesAreNames(t *testing.T) {
	for _, name := range []string{
		"a=b", "a@b", "a:b", "a/b", "a;b", "a b", "a-b", "--x", "tokens", "EdFi_Token", "secret", "Password Store", "key-store", "admin (old)", `a"b'c`, "ü", "100%", "a%3Db", "x.y\\z", "port", "passage=1",
	} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A secret may name a database that looks like a pattern. It is that one database.
func TestANameWithAStarIsNoPattern(t *testing.T) {
	s := Select("EdFi_*")
	allows := s.Filter(true)
	if !allows("edfi_*") || allows("EdFi_Admin") || s.HasPatterns() {
		t.Error("the name is taken for a pattern")
	}
	if got := s.Resolve([]Database{{Name: "EdFi_Admin"}}, true); len(got) != 1 || got[0].Name != "EdFi_*" || got[0].Matched {
		t.Errorf("%+v", got)
	}
}

// Of names in ASCII and exclusions in ASCII no collation says more than their letters do.
func TestTheServerIsAskedWhereAnExclusionMayMeanMoreThanItsLetters(t *testing.T) {
	names := []string{"EdFi_Zurich", "EdFi_Zürich", "ＥdFi", "a\x01", "b c "}
	for list, want := range map[string]int{"*": 0, "*,!EdFi_Zurich": 3, "*,!x*": 3, "*,!x,!ü*": 5, "ü*,EdFi_Zürich": 0} {
		s, err := ParseSelection(list)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Unsettled(names); len(got) != want {
			t.Errorf("%s: %q, want %d", list, got, want)
		}
	}
}

func TestManyNamesAndPatternsCostLittle(t *testing.T) {
	var list, names []string
	for i := range 400 {
		list = append(list, fmt.Sprintf("tenant%d_*_Admin", i), fmt.Sprintf("!*_%d_old*", i))
	}
	var catalogue []Database
	for i := range 10_000 {
		names = append(names, fmt.Sprintf("tenant%d_school_Admin", i%400))
		catalogue = append(catalogue, Database{Name: fmt.Sprintf("tenant%d_%d_Admin", i%400, i)})
	}
	s, err := ParseSelection(strings.Join(list, ","))
	if err != nil {
		t.Fatal(err)
	}
	allows := s.Filter(true)
	// One pattern compiled for each name and pattern took gigabytes.
	if perName := testing.AllocsPerRun(1, func() {
		for _, name := range names {
			if !allows(name) {
				t.Error(name)
			}
		}
	}) / float64(len(names)); perName > 10 {
		t.Errorf("%g allocations for each name", perName)
	}
	if got := len(s.Resolve(catalogue, true)); got != len(catalogue) {
		t.Errorf("%d databases", got)
	}
}

func TestASelectionAllowsWhatItWouldResolveTo(t *testing.T) {
	s, err := ParseSelection("EdFi_Admin*,!EdFi_Admin_Old")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"EdFi_Admin_New": true, "EdFi_Admin_Old": false, "edfi_admin_new": false, "postgres": false} {
		if s.Filter(false)(name) != want {
			t.Errorf("%s", name)
		}
	}
	if !s.HasPatterns() || Select("a").HasPatterns() || !slices.Contains(resolved(t, "a", false), "a") {
		t.Error("patterns")
	}
}
