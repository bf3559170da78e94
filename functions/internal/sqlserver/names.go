package sqlserver

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// mostCompared is how many names, and how many patterns, one statement compares: it has
// one parameter for a name and two for a pattern, of 2,100.
const mostCompared = 500

var collationName = regexp.MustCompile(`^\w+$`)

// likePattern writes a pattern with * and ? as LIKE has it.
var likePattern = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `[`, `\[`, `*`, `%`, `?`, `_`)

// Matching returns those of names that one of the patterns matches as the server compares
// the names of databases. It is asked by way of the database named.
func (s Server) Matching(ctx context.Context, via string, names, patterns []string) ([]string, error) {
	const doing = "compare names of databases"
	c := &conn{server: s, database: via}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	var collation string
	if err := c.session.QueryRowContext(ctx, sqlCollation).Scan(&collation); err != nil {
		return nil, c.explain(doing, err)
	}
	if !collationName.MatchString(collation) { // no parameter can stand there
		return nil, fmt.Errorf("%s: the server does not say by which collation", doing)
	}
	var all []string
	for some := range slices.Chunk(names, mostCompared) {
		matched := make([]bool, len(some))
		for by := range slices.Chunk(patterns, mostCompared) {
			if err := c.match(ctx, collation, some, by, matched); err != nil {
				return nil, c.explain(doing, err)
			}
		}
		for i, name := range some {
			if matched[i] {
				all = append(all, name)
			}
		}
	}
	return all, nil
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
