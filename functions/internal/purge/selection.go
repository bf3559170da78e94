package purge

import (
	"errors"
	"regexp"
	"slices"
	"strings"
)

// Database is one database of a run.
type Database struct {
	Name string
	// Matched tells that only a pattern matched it: then it is skipped where it
	// can't be purged. One that was named fails.
	Matched bool
	// Closed is why it can't be connected to, as the server's catalogue has it.
	Closed string
}

// Selection is a list of databases as an operator writes it: names, patterns
// with * and ?, and both with a leading ! to exclude. An exclusion wins.
type Selection struct {
	names    []string
	patterns []string
	excluded []string
}

// ParseSelection reads a comma-separated list. Its error quotes nothing of it.
func ParseSelection(list string) (Selection, error) {
	var s Selection
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		name, exclude := strings.CutPrefix(item, "!")
		name = strings.TrimSpace(name)
		switch {
		case name == "":
			return s, errors.New("holds an empty name")
		case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '!' }):
			return s, errors.New("holds a control character or a ! inside a name")
		case strings.Contains(name, "://"): // results, logs and metrics show names
			return s, errors.New("holds a URL; it takes names of databases")
		case exclude:
			s.excluded = append(s.excluded, name)
		case strings.ContainsAny(name, "*?"):
			s.patterns = append(s.patterns, name)
		default:
			s.names = append(s.names, name)
		}
	}
	if s.names == nil && s.patterns == nil {
		return s, errors.New("holds exclusions only; * is all databases")
	}
	return s, nil
}

// Select is a selection of names alone.
func Select(names ...string) Selection { return Selection{names: names} }

// Names returns what s says literally: all names, the excluded ones among them, and
// the patterns without their stars.
func (s Selection) Names() []string {
	names := slices.Concat(s.names, s.patterns, s.excluded)
	for i, name := range names {
		names[i] = strings.ReplaceAll(name, "*", "")
	}
	return names
}

// HasPatterns tells whether the server's catalogue is needed to resolve s.
func (s Selection) HasPatterns() bool { return s.patterns != nil }

// Allows tells whether s includes the database of this name. fold ignores the
// letter case, as SQL Server does.
func (s Selection) Allows(name string, fold bool) bool {
	return !matches(s.excluded, name, fold) && (matches(s.names, name, fold) || matches(s.patterns, name, fold))
}

// Resolve answers the databases that s includes: those named, whether the
// catalogue has them or not, and those of the catalogue that a pattern matches.
func (s Selection) Resolve(catalogue []Database, fold bool) []Database {
	var all []Database
	add := func(d Database) {
		same := func(have Database) bool { return equal(have.Name, d.Name, fold) }
		if !matches(s.excluded, d.Name, fold) && !slices.ContainsFunc(all, same) {
			all = append(all, d)
		}
	}
	for _, name := range s.names {
		add(Database{Name: name})
	}
	for _, d := range catalogue {
		if matches(s.patterns, d.Name, fold) {
			d.Matched = true
			add(d)
		}
	}
	return all
}

func equal(a, b string, fold bool) bool { return a == b || fold && strings.EqualFold(a, b) }

var wildcards = strings.NewReplacer(`\*`, `.*`, `\?`, `.`)

// matches tells whether any of the patterns, or plain names, matches name.
func matches(patterns []string, name string, fold bool) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		flags := `(?s)`
		if fold {
			flags = `(?si)`
		}
		// A quoted pattern always compiles.
		return regexp.MustCompile(flags + `^` + wildcards.Replace(regexp.QuoteMeta(pattern)) + `$`).MatchString(name)
	})
}
