package main

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strconv"
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
	`{"tables":[]}`:                         "tables",
	`{"tables":null}`:                       "tables",
	`{"tables":["Users"]}`:                  "tables",
	`{"tables":["clientaccesstokens"]}`:     "tables",
	`{"gracePeriod":"24"}`:                  "gracePeriod",
	`{"gracePeriod":"-1h"}`:                 "gracePeriod",
	`{"gracePeriod":""}`:                    "gracePeriod",
	`{"gracePeriod":24}`:                    "gracePeriod",
	`{"gracePeriod":"87600h1ns"}`:           `gracePeriod: must be a duration such as "30s" or "24h", above zero and at most "87600h"`,
	`{"gracePeriod":"2400000h"}`:            "gracePeriod",
	`{"gracePeriod":"9999999h"}`:            "gracePeriod",
	`{"maxDuration":"87601h"}`:              "maxDuration",
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

	// Nothing that is asked for is dropped.
	`{"detail-type":"x","source":"y","detail":{"action":"delete"}}`:           "detail: action",
	`{"detail-type":"x","source":"y","detail":{"Action":"dry-run"}}`:          `detail: "Action"`,
	`{"detail-type":"x","source":"y","detail":{"action":"check","x":1}}`:      `detail: "x"`,
	`{"detail-type":"x","source":"y","detail":{"maxRows":0}}`:                 "detail: maxRows",
	`{"detail-type":"x","source":"y","detail":null}`:                          "detail",
	`{"detail-type":"x","source":"y","detail":""}`:                            "detail",
	`{"detail-type":"x","source":"y","detail":"dry-run"}`:                     "detail",
	`{"detail-type":"x","source":"y","detail":"{\"action\":1}"}`:              "detail: action",
	`{"detail-type":"x","source":"y","detail":[{"action":"dry-run"}]}`:        "detail",
	`{"detail-type":"x","source":"y","detail":{"detail":{"action":"check"}}}`: `detail: "detail"`,
	`{"detail-type":"x","source":"y","Detail":{"action":"dry-run"}}`:          `"Detail"`,
	`{"detail-type":"x","source":"y","Action":"dry-run"}`:                     `"Action"`,
	`{"detail-type":"x","source":"y","dryRun":true}`:                          `"dryRun"`,
	`{"detail":{"action":"dry-run"}}`:                                         `"detail"`,

	// An envelope of nulls is none.
	`{"detail-type":null,"source":null}`:                  "detail-type",
	`{"detail-type":"x","source":null}`:                   "source",
	`{"detail-type":"","source":"y"}`:                     "detail-type",
	`{"detail-type":"x","source":""}`:                     "source",
	`{"detail-type":1,"source":"y"}`:                      "detail-type",
	`{"detail-type":["x"],"source":{"a":1}}`:              "detail-type",
	`{"detail-type":null,"source":null,"action":"check"}`: "action",

	// What is no name is not taken for one.
	`{"databases":["host=h;password=x"]}`:                       "databases",
	`{"databases":["Server=h"]}`:                                "databases",
	`{"databases":["user:p w@h"]}`:                              "databases",
	`{"databases":["user:pw@h"]}`:                               "databases",
	`{"databases":["a","` + "\xff" + `"]}`:                      "JSON object",
	`{"databases":["\ud800"]}`:                                  "databases",
	`{"databases":[` + strings.Repeat(`"a",`, 10_000) + `"a"]}`: "databases: holds more than 10,000 names",
}

func TestABadEventNamesItsField(t *testing.T) {
	for event, want := range badEvents {
		_, err := parseEvent([]byte(event))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.200s: %v, want it to name %s", event, err, want)
		}
	}
}

func TestGoodEventsAreRead(t *testing.T) {
	for _, event := range []string{
		`{}`, " {}\n", scheduled, `{"detail-type":"x","source":"y"}`, `{"detail-type":"x","source":"y","detail":{}}`,
		`{"detail-type":"Scheduled Event","source":"aws.scheduler","resources":["r"],"detail":"{}"}`, `{"detail-type":"x","source":"y","replay-name":"r"}`,
	} {
		req, err := parseEvent([]byte(event))
		if err != nil || req.action != purge.Purge || req.databases != nil || req.maxRows != 0 {
			t.Errorf("%s: %+v, %v", event, req, err)
		}
	}
	const asked = `{"action":"dry-run","databases":["A","B"],"gracePeriod":"24h","maxRows":100000,"batchSize":1000,"maxDuration":"2m"}`
	req, err := parseEvent([]byte(asked))
	for _, event := range []string{`{"detail-type":"x","source":"y","detail":` + asked + `}`, `{"detail-type":"x","source":"y","detail":` + strconv.Quote(asked) + `}`} {
		if in, err := parseEvent([]byte(event)); err != nil || !reflect.DeepEqual(in, req) {
			t.Errorf("%s: %+v, %v, want %+v", event, in, err, req)
		}
	}
	if err != nil || req.action != purge.DryRun || len(req.databases) != 2 || req.grace != 24*time.Hour || req.maxRows != 100000 ||
		req.batchSize != 1000 || req.maxDuration != 2*time.Minute {
		t.Errorf("%+v, %v", req, err)
	}
}

// namesAField is what the error for an event must begin with.
var namesAField = regexp.MustCompile(`^(detail: )?(must be a JSON object|the event must be a JSON object|"(\\.|[^"\\])*": (unknown field|comes twice)|(action|databases|tables|gracePeriod|maxRows|batchSize|maxDuration|detail-type|source): )`)

func TestAMessageAboutAnEventIsShort(t *testing.T) {
	long := strings.Repeat("k\x01", 3_000_000) // as much as Lambda takes
	quoted, _ := json.Marshal(long)            // a string
	all := purge.Select("EdFi_Admin").Filter(false)
	for _, event := range []string{
		`{` + string(quoted) + `:1}`, `{` + string(quoted) + `:1,` + string(quoted) + `:1}`, `{"action":` + string(quoted) + `}`, `{"databases":[` + string(quoted) + `]}`,
		`{"detail-type":"x","source":"y",` + string(quoted) + `:1}`, `{"detail-type":"x","source":"y","detail":{` + string(quoted) + `:1}}`,
		`{"databases":["` + strings.Repeat("n", 6_000_000) + `"]}`,
	} {
		req, err := parseEvent([]byte(event))
		if err == nil {
			err = req.refuse(purge.Policy{}, purge.Tables(), all)
		}
		if err == nil || len(err.Error()) > 1000 || strings.Contains(err.Error(), "\x01") {
			t.Errorf("%.20s: %.2000v", event, err)
		}
	}
}

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
