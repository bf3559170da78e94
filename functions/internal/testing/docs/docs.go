// Package docs reads README.md and the pages beside it, so that tests can compare
// them with the source. Its own tests check links, lists and local commands; the
// tests of package stack run the commands that need AWS, and the tests of
// functions/purge-tokens run the queries.
//
// It also writes the README's tables of findings.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// Pages are the documents, from the root of the repository.
var Pages = []string{"README.md", "RUNBOOK.md", "RELIABILITY.md"}

// Root is the root of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "..")
}

// Page returns the text of one document, or of any other file.
func Page(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join(Root(), path))
	return string(text), err
}

// Block is a fenced block of code.
type Block struct {
	Page, Language, Text string
}

var fenced = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// Blocks returns the blocks of all pages in this language.
func Blocks(language string) (blocks []Block, err error) {
	for _, page := range Pages {
		text, err := Page(page)
		if err != nil {
			return nil, err
		}
		for _, m := range fenced.FindAllStringSubmatch(text, -1) {
			if m[1] == language {
				blocks = append(blocks, Block{page, m[1], m[2]})
			}
		}
	}
	return blocks, nil
}

// Kind tells where the commands of a block can run.
type Kind string

// The kinds. Every block of commands is of exactly one.
const (
	CI    Kind = "ci"    // .ci/run runs the same lines
	Local Kind = "local" // needs a database
	Cloud Kind = "cloud" // needs AWS, or an imitation
)

// Kind returns where the block's commands run.
func (b Block) Kind() Kind {
	switch {
	case strings.Contains(b.Text, "bin/purge-tokens"):
		return Local
	case strings.Contains(b.Text, "make demo"):
		return CI
	default:
		return Cloud
	}
}

// Prose returns the text without its fenced blocks.
func Prose(text string) string { return fenced.ReplaceAllString(text, "") }
