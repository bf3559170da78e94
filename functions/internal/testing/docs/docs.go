// Package docs reads README.md and the pages in docs/, so that tests can compare
// them with the source. Its own tests check links, lists and local commands; the
// tests of package stack run the commands that need AWS, and the tests of
// functions/purge-tokens run the queries.
//
// It also writes the tables of findings.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Pages are the documents for users, from the root of the repository.
var Pages = pages()

func pages() []string {
	all := []string{"README.md"}
	found, _ := filepath.Glob(filepath.Join(Root(), "docs", "*.md")) // the pattern is a good one
	for _, path := range found {
		all = append(all, "docs/"+filepath.Base(path))
	}
	return all
}

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

// Blocks returns the blocks of all pages in these languages, page by page.
func Blocks(languages ...string) (blocks []Block, err error) {
	for _, page := range Pages {
		text, err := Page(page)
		if err != nil {
			return nil, err
		}
		for _, at := range fenced.FindAllStringSubmatchIndex(text, -1) {
			b := Block{Page: page, Language: text[at[2]:at[3]], Text: text[at[4]:at[5]]}
			if !slices.Contains(languages, b.Language) {
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

// ExampleURL is the database in the commands. Tests replace it with their server's.
const ExampleURL = "postgres://edfi_token_purge:<password>@<host>:5432/EdFi_Admin"

// Commands returns the blocks of commands that bash runs: those for every shell,
// marked sh, and those for bash and zsh, which have a twin for PowerShell.
func Commands() ([]Block, error) { return Blocks("sh", "bash") }

// DeployStep tells whether the block is of one of the numbered steps of docs/deploy.md.
func (b Block) DeployStep() bool {
	return b.Page == "docs/deploy.md" && len(b.Heading) > 1 && b.Heading[0] >= '1' && b.Heading[0] <= '9'
}

// Kind tells where the commands of a block can run.
type Kind string

// The kinds. Every block of commands is of exactly one.
const (
	CI    Kind = "ci"    // .ci/run runs the same lines
	Local Kind = "local" // needs a database
	Cloud Kind = "cloud" // needs AWS, or an imitation

	Release Kind = "release" // needs a release's files, and AWS or an imitation
)

// Kind returns where the block's commands run.
func (b Block) Kind() Kind {
	switch {
	case b.Heading == "From a release, without Go", b.Heading == "Upgrade and roll back", b.Heading == "Change a parameter":
		return Release
	case regexp.MustCompile(`(?m)^purge-tokens `).MatchString(b.Text), strings.Contains(b.Text, "DATABASE_URL="):
		return Local
	case strings.Contains(b.Text, "make demo"):
		return CI
	default:
		return Cloud
	}
}

// Prose returns the text without its fenced blocks.
func Prose(text string) string { return fenced.ReplaceAllString(text, "") }
