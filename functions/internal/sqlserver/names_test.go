package sqlserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestTheServerComparesNamesByItsOwnCollation(t *testing.T) {
	t.Parallel()
	var names, patterns []string
	for i := range 2*mostCompared + 1 {
		names, patterns = append(names, fmt.Sprint("ü", i)), append(patterns, fmt.Sprint("ü*", i))
	}
	var asked atomic.Int32
	s := newStandIn(t, &standIn{answer: func(kind string) []byte {
		switch kind {
		case "collation":
			return row("Latin1_General_CI_AI")
		case "matching":
			switch asked.Add(1) { // three parts of the names against three of the patterns
			case 2:
				return row(7)
			case 9:
				return row(0)
			}
			return rowless()
		case "differs":
			return row(0)
		}
		return nil
	}})
	got, err := s.server().Matching(t.Context(), "master", names, patterns)
	if err != nil || !slices.Equal(got, []string{"ü7", "ü1000"}) || asked.Load() != 9 {
		t.Errorf("%q after %d statements, %v", got, asked.Load(), err)
	}
}

// A server that can't say it is no server without such names.
func TestAServerThatCannotCompareNamesIsAnError(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]map[string][]byte{
		"no collation":     {"collation": row("")},
		"no name of one":   {"collation": row("C; DROP DATABASE EdFi_Admin")},
		"refuses":          {"collation": failure(229, 14, "denied")},
		"knows no LIKE":    {"collation": row("German_CI_AI"), "matching": failure(40000, 16, "LIKE is not supported for this collation")},
		"ends meanwhile":   {"collation": row("German_CI_AI"), "matching": hangUp},
		"returns no place": {"collation": row("German_CI_AI"), "matching": row("x")},
	} {
		s := newStandIn(t, &standIn{answer: func(kind string) []byte { return answers[kind] }})
		if got, err := s.server().Matching(t.Context(), "master", []string{"ü"}, []string{"u"}); err == nil || got != nil || !strings.Contains(err.Error(), "compare names of databases") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// What comes before a run is given up when its time is over, whatever does not answer.
func TestTheListAndTheNamesAreGivenUpInTime(t *testing.T) {
	t.Parallel()
	for _, silent := range []string{"login", "databases", "collation", "matching"} {
		t.Run(silent, func(t *testing.T) {
			t.Parallel()
			s := newStandIn(t, &standIn{
				answer: func(kind string) []byte {
					switch kind {
					case silent, attention:
						return noAnswer
					case "collation":
						return row("German_CI_AI")
					}
					return nil
				},
				login: func(int32) []byte {
					if silent == "login" {
						return noAnswer
					}
					return nil
				},
			})
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var err error
			if silent == "databases" {
				_, err = s.server().Databases(ctx, "master")
			} else {
				_, err = s.server().Matching(ctx, "master", []string{"ü"}, []string{"u"})
			}
			if took := time.Since(began); err == nil || took > 2*time.Second {
				t.Errorf("%v after %s", err, took)
			}
		})
	}
}

// Where LIKE compares otherwise than the server does, a pattern that may be meant in other
// letters is refused, and no other.
func TestAPatternThatTheServerCannotCompareIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, pattern string
		like          int // 1: it differs from the collation
		refused       bool
	}{
		{"EdFi_Zürich", "*_Zurich", 1, true},
		{"EdFi_Zürich", "*_Zurich", 0, false},
		{"ＥdFi_Test_1", "edfi_test*", 1, true},
		{"EdFi_Straße_1", "*_strasse*", 1, true},
		{"EdFi_Admın_1", "edfi_admin*", 1, true},
		{"EdFi_Te\u200bst", "*_test", 1, true},
		{"EdFi_Zürich", "*_Template", 1, false},
		{"EdFi_Zürich", "EdFi_Zurich", 1, false}, // compared as a whole
	} {
		s := newStandIn(t, &standIn{answer: func(kind string) []byte {
			switch kind {
			case "collation":
				return row("Latin1_General_CI_AI")
			case "matching":
				return rowless()
			case "differs":
				return row(c.like)
			}
			return nil
		}})
		_, err := s.server().Matching(t.Context(), "master", []string{c.name}, []string{"other", c.pattern})
		if (err != nil) != c.refused || err != nil && !contains(err.Error(), "compare names of databases", c.pattern, "write the pattern in the letters of the name") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestAPatternIsThatOfLIKE(t *testing.T) {
	for pattern, want := range map[string]string{`a*b?c`: `a%b_c`, `100%_[x]`: `100\%\_\[x]`, `a\*`: `a\\%`} {
		if got := likePattern.Replace(pattern); got != want {
			t.Errorf("%s: %s, want %s", pattern, got, want)
		}
	}
}

// On a real server: what it takes for one name is one, and nothing else is.
func TestNamesAreComparedAsTheServerDoes(t *testing.T) {
	needServer(t)
	master := connect(t, "master")
	collation := strings.ToUpper(one[string](t, master, "SELECT CAST(SERVERPROPERTY('Collation') AS nvarchar(128))"))
	login := stage{}.admin()
	onBabelfish := strings.Contains(one[string](t, master, "SELECT @@VERSION"), "Babelfish")
	ignores := func(sign string) bool { return strings.Contains(collation, sign) }
	for _, c := range []struct {
		name, pattern string
		want          bool
	}{
		{"EdFi_Admin", "EdFi_Admin", true},
		{"EdFi_Admin  ", "EdFi_Admin", true},
		{"EDFI_ADMIN", "edfi_admin", ignores("_CI")},
		{"EdFi_Zürich", "EdFi_Zurich", ignores("_AI")},
		{"EdFi_Zürich_1", "*_Zurich*", ignores("_AI")},
		{"EdFi_Zürich_1", "EdFi?Zürich*", true},
		{"EdFiXZürich_1", "EdFi_Zürich*", false},
		{"EdFi_100%ü", "*100%ü", true},
		{"EdFi_100xü", "*100%ü", false},
		{"EdFi_[ü]", "EdFi_[ü]", true},
		{"EdFi_ü", "EdFi_[ü]", false},
		{`EdFi_\ü`, `EdFi_\*`, true},
		{"EdFi_Gen", "EdFi_Genf", false},
		{"ＥdFi_Test", "EdFi_Test", !ignores("_WS")},
		{"ＥdFi_Test_1", "EdFi_*", !ignores("_WS")},
	} {
		got, err := login.Matching(t.Context(), "master", []string{"other", c.name}, []string{"nothing", c.pattern})
		if err != nil && onBabelfish && strings.Contains(err.Error(), "the server's LIKE can't tell") {
			continue
		}
		if err != nil || (len(got) == 1 && got[0] == c.name) != c.want || len(got) > 1 {
			t.Errorf("%s: %q and %q: %q, %v, want %t", collation, c.name, c.pattern, got, err, c.want)
		}
	}
}
