package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/docs"
)

// badEvents maps events to what their error must name.
var badEvents = map[string]string{
	``:                                      "JSON object",
	` `:                                     "JSON object",
	`null`:                                  "JSON object",
	`[]`:                                    "JSON object",
	`"purge"`:                               "JSON object",
	`5`:                                     "JSON object",
	`{`:                                     "JSON object",
	`{} {}`:                                 "JSON object",
	`{"action":"purge"`:                     "JSON object",
	`{"action":"delete"}`:                   "action",
	`{"action":""}`:                         "action",
	`{"action":null}`:                       "action",
	`{"action":1}`:                          "action",
	`{"Action":"dry-run"}`:                  `"Action"`,
	`{"dryRun":true}`:                       `"dryRun"`,
	`{"databases":[]}`:                      "databases",
	`{"databases":[""]}`:                    "databases",
	`{"databases":"EdFi_Admin"}`:            "databases",
	`{"databases":["EdFi_*"]}`:              "databases",
	`{"databases":["!x"]}`:                  "databases",
	`{"databases":["h://x"]}`:               "databases",
	`{"databases":["a\nb"]}`:                "databases",
	`{"databases":[null]}`:                  "databases",
	`{"databases":null}`:                    "databases",
	`{"gracePeriod":"24"}`:                  "gracePeriod",
	`{"gracePeriod":"-1h"}`:                 "gracePeriod",
	`{"gracePeriod":""}`:                    "gracePeriod",
	`{"gracePeriod":24}`:                    "gracePeriod",
	`{"maxRows":0}`:                         "maxRows",
	`{"maxRows":-1}`:                        "maxRows",
	`{"maxRows":1.5}`:                       "maxRows",
	`{"maxRows":"10"}`:                      "maxRows",
	`{"maxRows":9223372036854775808}`:       "maxRows",
	`{"batchSize":0}`:                       "batchSize",
	`{"batchSize":null}`:                    "batchSize",
	`{"maxDuration":"0s"}`:                  "maxDuration",
	`{"maxDuration":"soon"}`:                "maxDuration",
	`{"source":"aws.events"}`:               `"source"`,
	`{"detail-type":"Scheduled Event"}`:     `"detail-type"`,
	`{"action":"dry-run","action":"purge"}`: `"action"`,
	`{"detail-type":"x","source":"y","action":"dry-run"}`: "action",
}

func TestABadEventNamesItsField(t *testing.T) {
	for event, want := range badEvents {
		_, err := parseEvent([]byte(event))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to name %s", event, err, want)
		}
	}
}

func TestGoodEventsAreRead(t *testing.T) {
	for _, event := range []string{`{}`, " {}\n", scheduled, `{"detail-type":"x","source":"y"}`} {
		req, err := parseEvent([]byte(event))
		if err != nil || req.action != purge.Purge || req.databases != nil || req.maxRows != 0 {
			t.Errorf("%s: %+v, %v", event, req, err)
		}
	}
	req, err := parseEvent([]byte(`{"action":"dry-run","databases":["A","B"],"gracePeriod":"24h","maxRows":100000,"batchSize":1000,"maxDuration":"2m"}`))
	if err != nil || req.action != purge.DryRun || len(req.databases) != 2 || req.grace != 24*time.Hour || req.maxRows != 100000 ||
		req.batchSize != 1000 || req.maxDuration != 2*time.Minute {
		t.Errorf("%+v, %v", req, err)
	}
}

// namesAField is what the error for an event must begin with.
var namesAField = regexp.MustCompile(`^(the event must be a JSON object|"(\\.|[^"\\])*": (unknown field|comes twice)|(action|databases|gracePeriod|maxRows|batchSize|maxDuration): )`)

func FuzzParseEvent(f *testing.F) {
	for event := range badEvents {
		f.Add([]byte(event))
	}
	f.Add([]byte(scheduled))
	f.Fuzz(func(t *testing.T, payload []byte) {
		req, err := parseEvent(payload)
		if err != nil {
			if !namesAField.MatchString(err.Error()) {
				t.Errorf("%s: %v", payload, err)
			}
			return
		}
		if req.maxRows < 0 || req.batchSize < 0 || req.grace < 0 || req.maxDuration < 0 || req.action == "" {
			t.Errorf("%s: %+v", payload, req)
		}
		for _, name := range req.databases {
			if name == "" || strings.ContainsAny(name, "*?!,\n") || strings.Contains(name, "://") {
				t.Errorf("%s: a name that can't be one: %q", payload, name)
			}
		}
	})
}

func TestTheDocumentedEventsAreAccepted(t *testing.T) {
	page, err := docs.Page("docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	events := regexp.MustCompile("(?m)`({[^`]*})`|^({\"action\".*})$").FindAllStringSubmatch(page, -1)
	for _, m := range events {
		event := m[1] + m[2]
		if _, err := parseEvent([]byte(event)); err != nil {
			t.Errorf("%s: %v", event, err)
		}
	}
	if len(events) < 6 {
		t.Errorf("only %d events", len(events))
	}
}
