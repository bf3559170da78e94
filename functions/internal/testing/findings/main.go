// Findings writes a page's tables of findings from purge.Kinds, by go generate.
package main

import (
	"fmt"
	"os"

	"edfi-token-purge/functions/internal/testing/docs"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: findings PAGE")
	}
	if err := write(os.Args[1]); err != nil {
		fail(err)
	}
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "findings:", why)
	os.Exit(1)
}

func write(path string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := docs.WithFindings(string(page))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
