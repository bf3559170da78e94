package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/testing/docs"
)

// What Lambda itself adds with JSON logs, for those that the runbook asks about;
// the service's documentation of platform events has them.
var platformFields = []string{"@timestamp", "type", "record.status", "record.errorType", "record.metrics.durationMs", "record.metrics.maxMemoryUsedMB"}

// Words of the query language, as far as the runbook uses it.
var queryWords = []string{"fields", "filter", "stats", "sort", "limit", "as", "by", "and", "or", "in", "not", "desc", "asc",
	"sum", "count", "max", "latest", "earliest", "bin", "ispresent"}

func TestTheRunbookAsksForWhatIsLogged(t *testing.T) {
	t.Parallel()
	// Runs that log all that there is: a finding, a failed database, batches; and
	// those that delete nothing.
	logged := map[string]bool{}
	values := map[string]bool{}
	good, bad := newDatabase(t, 30, 3), newDatabase(t, 3, 3)
	if _, err := good.conn.Exec(t.Context(), "DROP INDEX dbo.ix_clientaccesstokens_expiration"); err != nil {
		t.Fatal(err)
	}
	if _, err := bad.conn.Exec(t.Context(), "DROP TABLE dbo.clientaccesstokens"); err != nil {
		t.Fatal(err)
	}
	f := start(t, "DATABASES="+good.name+","+bad.name, "BATCH_SIZE=10", "AWS_LAMBDA_LOG_FORMAT=JSON", "AWS_LAMBDA_LOG_LEVEL=DEBUG")
	_, lines := f.invoke(t, `{}`)
	for _, action := range []string{"check", "dry-run"} {
		_, more := f.invoke(t, `{"action":"`+action+`","databases":["`+good.name+`"]}`)
		lines += more
	}
	hasty := good.start(t, "STOP_BEFORE=1h", "AWS_LAMBDA_LOG_FORMAT=JSON") // ends as no-time
	_, more := hasty.invoke(t, `{}`)
	lines += more
	for line := range strings.Lines(lines) {
		if !strings.HasPrefix(line, "{") { // aws-lambda-go logs an error once more, as text
			continue
		}
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		flatten("", record, func(field string, value any) {
			logged[field] = true
			values[fmt.Sprint(value)] = true
		})
	}
	queries, err := docs.Blocks("insights")
	if err != nil || len(queries) < 8 {
		t.Fatalf("%d queries, %v", len(queries), err)
	}
	quoted := regexp.MustCompile(`"[^"]*"`)
	word := regexp.MustCompile(`@?[A-Za-z][\w.]*`)
	renamed := regexp.MustCompile(`\bas (\w+)`)
	for _, q := range queries {
		for _, value := range quoted.FindAllString(q.Text, -1) {
			value = strings.Trim(value, `"`)
			if !values[value] && value != "platform.report" && value != "success" {
				t.Errorf("no line says %q:\n%s", value, q.Text)
			}
		}
		names := platformFields
		for _, m := range renamed.FindAllStringSubmatch(q.Text, -1) {
			names = append(slices.Clone(names), m[1])
		}
		text := regexp.MustCompile(`\b\d+m\b`).ReplaceAllString(quoted.ReplaceAllString(q.Text, ""), "")
		for _, w := range word.FindAllString(text, -1) {
			if !slices.Contains(queryWords, w) && !slices.Contains(names, w) && !logged[w] {
				t.Errorf("no line has %s:\n%s", w, q.Text)
			}
		}
	}
}

// flatten names fields as Logs Insights does.
func flatten(prefix string, value any, visit func(field string, value any)) {
	switch value := value.(type) {
	case map[string]any:
		for name, v := range value {
			flatten(prefix+"."+name, v, visit)
		}
	case []any:
		for i, v := range value {
			flatten(fmt.Sprintf("%s.%d", prefix, i), v, visit)
		}
	default:
		visit(strings.TrimPrefix(prefix, "."), value)
	}
}
