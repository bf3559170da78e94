// Package docs reads README.md and the pages beside it, so that tests can hold them
// against what there is. Its own tests check links, lists and local commands;
// those of the package stack run the commands that need AWS, those of
// functions/purge-tokens the queries.
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

// Page answers the text of one document, or of any other file.
func Page(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join(Root(), path))
	return string(text), err
}

// Block is what stands between two fences.
type Block struct {
	Page, Language, Text string
}

var fenced = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// Blocks answers the blocks in a language, of all pages.
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

// Kind says where the commands of a block can run.
type Kind string

// The kinds. Every block of commands is of exactly one.
const (
	CI    Kind = "ci"    // .ci/run runs the same lines
	Local Kind = "local" // needs a database
	Cloud Kind = "cloud" // needs AWS, or an imitation
)

// Kind answers where the block's commands run.
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

// Prose answers the text without what stands between fences.
func Prose(text string) string { return fenced.ReplaceAllString(text, "") }
