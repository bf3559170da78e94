package sqlserver

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// mostCompared is how many names, and how many patterns, one statement compares: it has
// one parameter for a name and two for a pattern, of 2,100.
const mostCompared = 500

const comparing = "compare names of databases"

var collationName = regexp.MustCompile(`^\w+$`)

// likePattern writes a pattern with * and ? as LIKE has it.
var likePattern = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `[`, `\[`, `*`, `%`, `?`, `_`)

// skeleton is what is left of a name without accents, width and what is not seen. Where
// those of two names differ, hardly any collation takes them for one.
func skeleton(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Cf, unicode.Cc):
			return -1
		case r == 'ı':
			return 'i'
		}
		return r
	}, strings.ReplaceAll(norm.NFKD.String(name), "ß", "ss"))
}

// Matching returns those of names that one of the patterns matches as the server compares
// the names of databases. It is asked by way of the database named. Where the server can't
// say it of a pattern, that is an error.
func (s Server) Matching(ctx context.Context, via string, names, patterns []string) ([]string, error) {
	c := &conn{server: s, database: via}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	var collation string
	if err := c.session.QueryRowContext(ctx, sqlCollation).Scan(&collation); err != nil {
		return nil, c.explain(comparing, err)
	}
	if !collationName.MatchString(collation) { // no parameter can stand there
		return nil, fmt.Errorf("%s: the server does not say by which collation", comparing)
	}
	var all, others []string
	for some := range slices.Chunk(names, mostCompared) {
		matched := make([]bool, len(some))
		for by := range slices.Chunk(patterns, mostCompared) {
			if err := c.match(ctx, collation, some, by, matched); err != nil {
				return nil, c.explain(comparing, err)
			}
		}
		for i, name := range some {
			if matched[i] {
				all = append(all, name)
			} else {
				others = append(others, name)
			}
		}
	}
	return all, c.doubt(ctx, collation, others, patterns)
}

// doubt returns an error for a name of which the server can't say whether a pattern
// matches it, and may take the letters for the same.
func (c *conn) doubt(ctx context.Context, collation string, names, patterns []string) error {
	for _, pattern := range patterns {
		if !strings.ContainsAny(pattern, "*?") {
			continue // that was compared as a whole
		}
		alike := skeleton(pattern)
		for _, name := range names {
			if !purge.Matches(alike, skeleton(name)) {
				continue
			}
			var differs bool
			err := c.session.QueryRowContext(ctx, strings.ReplaceAll(sqlLikeDiffers, "{collation}", collation)).Scan(&differs)
			if err != nil || !differs { // one answer holds for all
				return c.explain(comparing, err)
			}
			return fmt.Errorf("%s: %s differs from the pattern %s in accents, width or the like alone, and the server's LIKE can't tell whether that counts: write the pattern in the letters of the name", comparing, redact.Quote(name), redact.Quote(pattern))
		}
	}
	return nil
}

// match marks those of names that one of the patterns matches.
func (c *conn) match(ctx context.Context, collation string, names, patterns []string, matched []bool) error {
	var given, matching []string
	var args []any
	for i, name := range names {
		args = append(args, strings.TrimRight(name, " ")) // as LIKE does not ignore them
		given = append(given, fmt.Sprintf("(%d, @p%d)", i, len(args)))
	}
	for _, pattern := range patterns {
		args = append(args, pattern, likePattern.Replace(pattern))
		matching = append(matching, fmt.Sprintf("(@p%d, @p%d)", len(args)-1, len(args)))
	}
	statement := strings.NewReplacer("{names}", strings.Join(given, ", "), "{patterns}", strings.Join(matching, ", "), "{collation}", collation).Replace(sqlMatching)
	read, err := c.session.QueryContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	defer read.Close()
	for read.Next() {
		var place int
		if err := read.Scan(&place); err != nil {
			return err
		}
		matched[place] = true
	}
	return read.Err()
}
