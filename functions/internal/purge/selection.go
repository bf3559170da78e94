package purge

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
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

// mostNames is how many names a list may hold: more databases than a server has.
const mostNames = 10_000

// Selection is a list of databases as an operator writes it: names, patterns
// with * and ?, and both with a leading ! to exclude. An exclusion wins.
type Selection struct {
	names    []string
	patterns []string
	excluded []string // names and patterns
}

// ParseSelection reads a comma-separated list. Its error quotes nothing of it.
func ParseSelection(list string) (Selection, error) {
	var s Selection
	if strings.Count(list, ",") >= mostNames {
		return s, fmt.Errorf("holds more than %s names", Grouped(mostNames))
	}
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		name, exclude := strings.CutPrefix(item, "!")
		name = strings.TrimSpace(name)
		if strings.Contains(name, "!") {
			return s, errors.New("holds a ! inside a name")
		}
		if err := CheckName(name); err != nil {
			return s, err
		}
		switch {
		case exclude:
			s.excluded = append(s.excluded, name)
		case isPattern(name):
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

// Select is a selection of names alone: a * in one is a character like any other.
func Select(names ...string) Selection { return Selection{names: names} }

// connection tells what is for a login and not for a name: a URL, encoded or not, a
// keyword of a connection string with its value, a part behind a semicolon, a flag, or
// user:password@host.
var connection = regexp.MustCompile(`(?i)://|%3a(?:/|%2f){2}|^//|^[jo]dbc:|;.*=|=.*;|` +
	`\b(?:host|hostaddr|server|data ?source|address|addr|port|user|user ?name|user ?id|uid|passfile|database|dbname|initial ?catalog|sslmode|` +
	`driver|dsn|provider|service|authentication|trusted_connection|integrated ?security|encrypt|instance|instance ?name)\s*=|` +
	`(?:password|passphrase|passwd|passcode|pass|pwd|psw|secret|token|key)\s*[=:]|` +
	`(?:^|\s)--?[\w-]*(?:password|passphrase|passwd|passcode|pwd|psw|secret|token|key)\b|` +
	`[^\s:]:[^@]+@|[^\s/]/[^@]+@`)

// CheckName returns why text can be no database's name, nor a pattern for one: results,
// logs and metrics show names, so that no login may stand where one belongs. Its error
// quotes nothing.
func CheckName(text string) error {
	switch {
	case text == "":
		return errors.New("holds an empty name")
	case strings.ContainsFunc(text, unicode.IsControl):
		return errors.New("holds a control character")
	case !utf8.ValidString(text) || strings.ContainsRune(text, unicode.ReplacementChar):
		return errors.New("holds a character that is none")
	case connection.MatchString(text):
		return errors.New("holds a URL or a connection string; it takes names of databases")
	}
	return nil
}

// CheckNames is CheckName for a list of names.
func CheckNames(names []string) error {
	if len(names) > mostNames {
		return fmt.Errorf("holds more than %s names", Grouped(mostNames))
	}
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return err
		}
	}
	return nil
}

// Names returns what s says literally: all names, the excluded ones among them, and
// the patterns without their stars.
func (s Selection) Names() []string {
	names := slices.Clone(s.names)
	for _, name := range slices.Concat(s.patterns, s.excluded) {
		names = append(names, strings.ReplaceAll(name, "*", ""))
	}
	return names
}

// Exclusions returns the names and patterns that s excludes.
func (s Selection) Exclusions() []string { return s.excluded }

// Unsettled returns those of names of which only a server that ignores letter case can say
// whether s excludes them: beyond ASCII its collation may take for one what differs in an
// accent, in width or in more.
func (s Selection) Unsettled(names []string) []string {
	switch {
	case s.excluded == nil:
		return nil
	case slices.ContainsFunc(s.excluded, beyondASCII):
		return names
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !beyondASCII(name) })
}

func beyondASCII(name string) bool {
	return strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' })
}

// HasPatterns tells whether the server's catalogue is needed to resolve s.
func (s Selection) HasPatterns() bool { return s.patterns != nil }

// Filter returns what tells whether s includes the database of a name. It is made once
// for many names. fold ignores their letter case, as SQL Server does.
func (s Selection) Filter(fold bool) func(name string) bool {
	included, excluded := newMatcher(s.names, s.patterns, fold), newMatcher(nil, s.excluded, fold)
	return func(name string) bool {
		name = folded(name, fold)
		return !excluded.match(name) && included.match(name)
	}
}

// Resolve returns the databases that s includes: those named, whether the
// catalogue has them or not, and those of the catalogue that a pattern matches.
func (s Selection) Resolve(catalogue []Database, fold bool) []Database {
	var all []Database
	patterns, excluded := newMatcher(nil, s.patterns, fold), newMatcher(nil, s.excluded, fold)
	seen := map[string]bool{}
	add := func(d Database, name string) {
		if !seen[name] && !excluded.match(name) {
			seen[name] = true
			all = append(all, d)
		}
	}
	for _, name := range s.names {
		add(Database{Name: name}, folded(name, fold))
	}
	for _, d := range catalogue {
		if name := folded(d.Name, fold); patterns.match(name) {
			d.Matched = true
			add(d, name)
		}
	}
	return all
}

// matcher matches folded names.
type matcher struct {
	names    map[string]bool
	patterns [][]rune
}

// newMatcher makes a matcher of names, and of patterns that may be names as well.
func newMatcher(names, patterns []string, fold bool) matcher {
	m := matcher{names: map[string]bool{}}
	for _, name := range names {
		m.names[folded(name, fold)] = true
	}
	for _, pattern := range patterns {
		if pattern = folded(pattern, fold); isPattern(pattern) {
			m.patterns = append(m.patterns, []rune(pattern))
		} else {
			m.names[pattern] = true
		}
	}
	return m
}

func (m matcher) match(name string) bool {
	if m.names[name] {
		return true
	}
	runes := []rune(name)
	return slices.ContainsFunc(m.patterns, func(pattern []rune) bool { return matches(pattern, runes) })
}

// Matches tells whether pattern, or a name, matches name in any letter case.
func Matches(pattern, name string) bool {
	return newMatcher(nil, []string{pattern}, true).match(folded(name, true))
}

func isPattern(text string) bool { return strings.ContainsAny(text, "*?") }

// matches tells whether name is what pattern describes: * is any characters, ? is one.
// Where the rest doesn't fit, the last * takes one character more.
func matches(pattern, name []rune) bool {
	p, n, star, taken := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, taken = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p, n = p+1, n+1
		case star >= 0:
			taken++
			p, n = star+1, taken
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// folded returns name, or where fold is set what [Fold] makes of it, without the blanks
// at its end, which SQL Server ignores as well.
func folded(name string, fold bool) string {
	if !fold {
		return name
	}
	return Fold(strings.TrimRight(name, " "))
}

// Fold returns the one name that stands for all that differ from name in letter case
// only, as [strings.EqualFold] has it.
func Fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			least = min(least, other)
		}
		return least
	}, name)
}
