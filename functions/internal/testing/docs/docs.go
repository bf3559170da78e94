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

// Block is a fenced block of code, and the heading that it is below.
type Block struct {
	Page, Heading, Language, Text string
}

var (
	fenced   = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	headings = regexp.MustCompile(`(?m)^##+ (.+)$`)
)

// Blocks returns the blocks of all pages in this language.
func Blocks(language string) (blocks []Block, err error) {
	for _, page := range Pages {
		text, err := Page(page)
		if err != nil {
			return nil, err
		}
		for _, at := range fenced.FindAllStringSubmatchIndex(text, -1) {
			b := Block{Page: page, Language: text[at[2]:at[3]], Text: text[at[4]:at[5]]}
			if b.Language != language {
				continue
			}
			if above := headings.FindAllStringSubmatch(Prose(text[:at[0]]), -1); len(above) > 0 {
				b.Heading = above[len(above)-1][1]
			}
			blocks = append(blocks, b)
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
