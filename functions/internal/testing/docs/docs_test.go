package docs

import (
	"cmp"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

func page(t *testing.T, path string) string {
	t.Helper()
	text, err := Page(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var (
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	notSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns the anchors that GitHub makes of a page's headings.
func anchors(text string) (all []string) {
	for _, m := range heading.FindAllStringSubmatch(Prose(text), -1) {
		all = append(all, strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}

func TestLinksLeadSomewhere(t *testing.T) {
	for _, from := range append(Pages, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md") {
		text := page(t, from)
		links := link.FindAllStringSubmatch(Prose(text), -1)
		for _, m := range links {
			to, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %v", from, err)
			}
			if to.IsAbs() {
				continue
			}
			target := path.Join(path.Dir(from), to.Path)
			if to.Path == "" {
				target = from
			}
			if _, err := os.Stat(filepath.Join(Root(), target)); err != nil {
				t.Errorf("%s links to %s: %v", from, m[1], err)
			} else if to.Fragment != "" && !slices.Contains(anchors(page(t, target)), to.Fragment) {
				t.Errorf("%s links to %s, which has no such heading", from, m[1])
			}
		}
		if len(links) == 0 {
			t.Errorf("%s has no links at all", from)
		}
	}
}

// Whoever looks a thing up finds the page from the README, the section from the
// page's head, and the way back.
func TestEveryPageIsLinkedHasAListOfContentsAndLeadsBack(t *testing.T) {
	for _, p := range Pages {
		text := Prose(page(t, p))
		if p != "README.md" {
			if !strings.Contains(page(t, "README.md"), "]("+p+")") {
				t.Errorf("the README does not link to %s", p)
			}
			if !strings.Contains(text, "](../README.md)") {
				t.Errorf("%s does not lead back to the README", p)
			}
		}
		first := heading.FindStringIndex(text)
		for _, section := range regexp.MustCompile(`(?m)^## (.+)$`).FindAllStringSubmatchIndex(text, -1) {
			anchor := anchors(text[section[0]:section[1]])[0]
			if at := strings.Index(text, "](#"+anchor+")"); first == nil || at < 0 {
				t.Errorf("%s: no list of contents has %s", p, text[section[2]:section[3]])
			}
		}
	}
}

func TestTheReadmeIsOnePage(t *testing.T) {
	if lines := strings.Count(page(t, "README.md"), "\n"); lines > 180 {
		t.Errorf("%d lines, of 180: move something to docs/", lines)
	}
}

// section returns the text below a heading of the second level or deeper.
func section(t *testing.T, text, title string) string {
	t.Helper()
	m := regexp.MustCompile(`(?ms)^(##+) ` + regexp.QuoteMeta(title) + `$(.*?)(^##+ |\z)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no section %q", title)
	}
	return m[2]
}

// firstColumn returns the code spans in the first column of a section's tables.
func firstColumn(text string) (spans []string) {
	for _, row := range regexp.MustCompile(`(?m)^\|([^|]+)\|`).FindAllStringSubmatch(text, -1) {
		for _, span := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			spans = append(spans, span[1])
		}
	}
	return spans
}

// source calls visit with the syntax tree of each file of the function, tests aside.
func source(t *testing.T, visit func(*ast.File)) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(filepath.Join(Root(), "functions"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "purgetest" || d.Name() == "testing"):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err == nil {
			files++
			visit(file)
		}
		return err
	})
	if err != nil || files < 10 {
		t.Fatalf("%d files, %v", files, err)
	}
}

func text(e ast.Expr) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(literal.Value)
	return s, err == nil
}

// name returns the last part of a function's or type's name.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

func TestThePageListsTheFindingsAsTheyAre(t *testing.T) {
	written := page(t, "docs/findings.md")
	want, err := WithFindings(written)
	if err != nil {
		t.Fatal(err)
	}
	if want != written {
		t.Error("docs/findings.md is stale: go generate ./functions/internal/purge")
	}
}

func TestEveryFindingHasACodeOfItsOwnAndAWayOut(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range purge.Kinds {
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(k.Code) {
			t.Errorf("%q is not words with hyphens between them", k.Code)
		}
		if seen[k.Code] {
			t.Errorf("there are two kinds of %s", k.Code)
		}
		seen[k.Code] = true
		for _, level := range []string{k.Level, cmp.Or(k.Or, k.Level)} {
			if !slices.Contains(purge.Levels, level) {
				t.Errorf("%s has the level %q, which there is not", k.Code, level)
			}
		}
		if k.Mend == "" || strings.ContainsAny(k.Mend, "|\n") {
			t.Errorf("%s says %q, which is no cell of a table", k.Code, k.Mend)
		}
	}
}

func TestEveryFindingIsFoundSomewhere(t *testing.T) {
	// The source says var X = kind(Kind{...}), uses X in the package purge, and
	// purge.X elsewhere.
	kinds, used := map[string]bool{}, map[string]bool{}
	source(t, func(file *ast.File) {
		inPurge := file.Name.Name == "purge"
		other := map[*ast.Ident]bool{} // what only has the name of a kind
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, v := range n.Values {
					if call, ok := v.(*ast.CallExpr); ok && inPurge && name(call.Fun) == "kind" {
						kinds[n.Names[i].Name], other[n.Names[i]] = true, true
					}
				}
			case *ast.FuncDecl:
				other[n.Name] = true
			case *ast.Field:
				for _, field := range n.Names {
					other[field] = true
				}
			case *ast.KeyValueExpr:
				if field, ok := n.Key.(*ast.Ident); ok {
					other[field] = true
				}
			case *ast.SelectorExpr:
				other[n.Sel] = true
				if name(n.X) == "purge" {
					used[n.Sel.Name] = true
				}
			case *ast.Ident:
				if inPurge && !other[n] {
					used[n.Name] = true
				}
			}
			return true
		})
	})
	for k := range kinds {
		if !used[k] {
			t.Errorf("nothing finds purge.%s", k)
		}
	}
	if len(kinds) != len(purge.Kinds) {
		t.Errorf("the source declares %d kinds of %d", len(kinds), len(purge.Kinds))
	}
}

func TestThePageListsEverySetting(t *testing.T) {
	listed := firstColumn(section(t, page(t, "docs/configuration.md"), "Settings"))
	read := 0
	source(t, func(file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || name(method.X) != "env" {
				return true
			}
			if s, ok := text(call.Args[0]); ok && s != "AWS_LAMBDA_FUNCTION_NAME" {
				if read++; !slices.Contains(listed, s) {
					t.Errorf("the table of settings lacks %s", s)
				}
			}
			return true
		})
	})
	if read < 10 {
		t.Errorf("only %d settings in the source", read)
	}
}

// These errors come from a library, and the function passes them on.
var othersErrors = []string{"no EC2 IMDS role found"}

func TestTroubleshootingGoesByErrorsThatThereAre(t *testing.T) {
	var texts strings.Builder
	source(t, func(file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if s, ok := text(e); ok {
					texts.WriteString(regexp.MustCompile(`%\S`).ReplaceAllString(s, "...") + "\n")
				}
			}
			return true
		})
	})
	all := strings.ReplaceAll(texts.String(), "table ... does", "table dbo.clientaccesstokens does")
	errors := firstColumn(section(t, page(t, "docs/findings.md"), "Errors, by their text"))
	for _, e := range errors {
		for part := range strings.SplitSeq(e, "...") {
			if part = strings.TrimSpace(part); !strings.Contains(all, part) && !slices.Contains(othersErrors, e) {
				t.Errorf("nothing says %q", part)
			}
		}
	}
	if len(errors) < 15 {
		t.Errorf("only %d errors", len(errors))
	}
}

func TestEveryDependencyIsJustified(t *testing.T) {
	passage := section(t, page(t, "CONTRIBUTING.md"), "Build")
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(page(t, "go.mod"), -1)
	for _, m := range direct {
		// A module is known by the last part of its path that is no version.
		name := filepath.Base(regexp.MustCompile(`/v\d+$`).ReplaceAllString(m[1], ""))
		if !regexp.MustCompile("`([^`]*/)?" + regexp.QuoteMeta(name) + "`").MatchString(passage) {
			t.Errorf("CONTRIBUTING.md does not say what %s is for", m[1])
		}
	}
	if len(direct) < 5 {
		t.Errorf("only %d dependencies in go.mod", len(direct))
	}
}

// What the pages say of the bench is what make bench wrote last.
func TestThePageTellsTheNumbersOfTheLastBench(t *testing.T) {
	_, measured, _ := strings.Cut(page(t, "docs/benchmarks.md"), "wrote from here")
	measured = strings.Join(strings.Fields(measured), " ") // benchstat aligns with blanks
	told := regexp.MustCompile(`\d+\.\d+ (\([\d.]+ to [\d.]+\)|± \d+%)`).FindAllString(section(t, page(t, "docs/how-it-works.md"), "Against one plain `DELETE`"), -1)
	for _, number := range told {
		if !strings.Contains(measured, number) {
			t.Errorf("docs/benchmarks.md does not say %s", number)
		}
	}
	if len(told) < 4 {
		t.Errorf("only %d numbers", len(told))
	}
}

func TestEveryAlarmIsExplained(t *testing.T) {
	alarms := regexp.MustCompile(`AlarmName: !Sub \$\{AWS::StackName\}-(\S+)`).FindAllStringSubmatch(page(t, "template.yaml"), -1)
	listed := firstColumn(section(t, page(t, "docs/deploy.md"), "Alarms"))
	for _, m := range alarms {
		explained := section(t, page(t, "docs/runbook.md"), m[1])
		for _, part := range []string{"**Means:**", "**Look:**", "```insights", "**Do:**"} {
			if !strings.Contains(strings.Replace(explained, "**Do,**", "**Do:**", 1), part) {
				t.Errorf("the runbook for %s lacks %s", m[1], part)
			}
		}
		if !slices.Contains(listed, "-"+m[1]) {
			t.Errorf("docs/deploy.md lists no alarm -%s", m[1])
		}
	}
	if len(alarms) < 4 {
		t.Errorf("only %d alarms in the template", len(alarms))
	}
}

// The cost is worked out from as many metrics and alarms as there are.
func TestTheCostAddsUp(t *testing.T) {
	metrics := len(firstColumn(section(t, page(t, "docs/configuration.md"), "Metrics")))
	alarms := strings.Count(page(t, "template.yaml"), "Type: AWS::CloudWatch::Alarm\n")
	rows := map[string][]float64{} // by their beginning, for 1, 100 and 300 tenants
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$`).FindAllStringSubmatch(section(t, page(t, "docs/faq.md"), "What does it cost?"), -1) {
		for _, cell := range row[3:] {
			if dollars, err := strconv.ParseFloat(strings.Trim(cell, "*"), 64); err == nil {
				rows[row[1]] = append(rows[row[1]], dollars)
			}
		}
	}
	if metrics < 6 || alarms < 5 || len(rows) < 7 {
		t.Fatalf("%d metrics, %d alarms, %v", metrics, alarms, rows)
	}
	for i, tenants := range []int{1, 100, 300} {
		near := func(what string, want float64) {
			if got := rows[what][i]; got < want-0.001 || got > want+0.001 {
				t.Errorf("%s for %d tenants: %.2f, not %.2f", what, tenants, got, want)
			}
		}
		few := 0.3 * float64(metrics)
		near("Metrics", few*float64(1+tenants))
		near("Alarms", 0.1*float64(alarms))
		rest := rows["Lambda, arm64"][i] + rows["Secrets Manager calls"][i] + rows["Logs"][i] + rows["Alarms"][i]
		near("**total**", rest+rows["Metrics"][i])
		near("**total**, fewer metrics", rest+few)
	}
}

func commands(t *testing.T, kind Kind) (blocks []Block) {
	t.Helper()
	all, err := Commands()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if b.Kind() == kind {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) == 0 {
		t.Fatalf("no commands of the kind %s", kind)
	}
	return blocks
}

func TestWhatTheReadmeHasOneTryIsWhatCIRuns(t *testing.T) {
	run := page(t, ".ci/run")
	for _, b := range commands(t, CI) {
		for line := range strings.Lines(b.Text) {
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); !strings.Contains(run, "\n"+line+"\n") {
				t.Errorf("%s: .ci/run has no line %q", b.Page, line)
			}
		}
	}
}

func TestTheLocalCommandsWorkAsWritten(t *testing.T) {
	ctx := context.Background()
	server, err := pgserver.Start(ctx, pgserver.Options{Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop() //nolint:errcheck // the test has spoken
	// Others may use the server too, and it may outlive the test.
	database, role := fmt.Sprintf("EdFi_Admin_Docs_%d", os.Getpid()), fmt.Sprintf("purge_docs_%d", os.Getpid())
	defer func() {
		admin, err := pgx.Connect(ctx, server.URL("postgres"))
		if err != nil {
			return // it is gone
		}
		defer admin.Close(ctx)
		for _, sql := range []string{"DROP DATABASE " + pgx.Identifier{database}.Sanitize() + " WITH (FORCE)", "DROP ROLE " + role} {
			if _, err := admin.Exec(ctx, sql); err != nil {
				t.Error(err)
			}
		}
	}()
	if err := edfi.CreateDatabase(ctx, server.URL("postgres"), database); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, server.URL(database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := edfi.CreateSchema(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if err := edfi.Fill(ctx, conn, edfi.FillOptions{Expired: 12_345, Live: 55}, nil); err != nil {
		t.Fatal(err)
	}
	// The login is the one that infra/postgres/role.sql creates.
	grants := strings.ReplaceAll(page(t, "infra/postgres/role.sql"), "edfi_token_purge", role)
	for _, sql := range []string{grants, "ALTER ROLE " + role + " PASSWORD 'pass/word'"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, "pass/word"),
		Host: fmt.Sprintf("%s:%d", server.Host, server.Port), Path: database, RawQuery: "sslmode=disable",
	}
	script := "" // one of all blocks, because a block uses what another one set
	for _, b := range commands(t, Local) {
		script += b.Text
	}
	if !strings.Contains(script, ExampleURL) {
		t.Fatalf("the commands don't name %s", ExampleURL)
	}
	// The run with a cap stops there and exits with 3.
	script = strings.ReplaceAll(script, ExampleURL, u.String())
	script = regexp.MustCompile(`(?m)^(purge-tokens purge -max-rows \S+)$`).ReplaceAllString(script, "$1 || test $$? = 3")
	command := exec.Command("bash", "-euo", "pipefail", "-c", "make --no-print-directory local\n"+script)
	command.Dir = Root()
	out, err := command.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`complete +12,345 +20\d\d-`, // dry-run
		`partial +1,000 `, `complete +11,345 `,
	} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if expired, live, err := edfi.Counts(ctx, conn); err != nil || expired != 0 || live != 55 {
		t.Errorf("%d expired and %d live rows are left, %v", expired, live, err)
	}
}

func TestReliabilityNamesTestsThatThereAre(t *testing.T) {
	tests := map[string]bool{}
	var texts []string // of all tests
	err := filepath.WalkDir(filepath.Join(Root(), "functions"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				tests[n.Name.Name] = true
			case *ast.BasicLit:
				if s, ok := text(n); ok {
					texts = append(texts, s)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test[^`]*)`").FindAllStringSubmatch(page(t, "docs/reliability.md"), -1)
	for _, m := range named {
		test, sub, _ := strings.Cut(m[1], "/")
		known := func(s string) bool { return strings.HasPrefix(s, sub) }
		if !tests[test] || !slices.ContainsFunc(texts, known) {
			t.Errorf("there is no %s", m[1])
		}
	}
	if len(named) < 20 {
		t.Errorf("only %d tests", len(named))
	}
}
