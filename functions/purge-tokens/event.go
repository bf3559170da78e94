package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// request is what an event asks for; the zero value of a field leaves it to
// the configuration.
type request struct {
	action      purge.Action
	databases   []string
	tables      []string
	grace       time.Duration
	maxRows     int64
	batchSize   int
	maxDuration time.Duration
}

// envelope are the fields of an EventBridge event, of which AWS makes the most. What
// else stands beside them asks for something that nobody would do.
var envelope = []string{"account", "detail", "detail-type", "id", "region", "replay-name", "resources", "source", "time", "version"}

// parseEvent reads an EventBridge event, {} or a request. Its error names the
// field at fault.
func parseEvent(payload []byte) (request, error) {
	fields, err := object(payload, errors.New("the event must be a JSON object: an EventBridge event, {} or a request"))
	if err != nil {
		return request{}, err
	}
	if fields["detail-type"] == nil || fields["source"] == nil {
		return parseRequest(fields)
	}
	for _, name := range sorted(fields) {
		_, known := requestFields[name]
		switch {
		case known:
			return request{}, fmt.Errorf("%s: beside the fields of an EventBridge event nothing is asked for; it belongs into detail", name)
		case !slices.Contains(envelope, name):
			return request{}, fmt.Errorf("%s: unknown field; an EventBridge event has %s, and a request in detail", redact.Quote(name), envelope)
		}
	}
	for _, name := range []string{"detail-type", "source"} {
		var text string
		if decode(fields[name], &text) != nil || text == "" {
			return request{}, fmt.Errorf("%s: must be a string, not empty", name)
		}
	}
	raw, ok := fields["detail"]
	if !ok {
		return parseRequest(nil)
	}
	// EventBridge Scheduler sends its detail as text.
	var text string
	if decode(raw, &text) == nil {
		raw = json.RawMessage(text)
	}
	detail, err := object(raw, errors.New("must be a JSON object: {} or a request"))
	if err != nil {
		return request{}, fmt.Errorf("detail: %w", err)
	}
	req, err := parseRequest(detail)
	if err != nil {
		return req, fmt.Errorf("detail: %w", err)
	}
	return req, nil
}

// parseRequest reads the fields of a request.
func parseRequest(fields map[string]json.RawMessage) (request, error) {
	req := request{action: purge.Purge}
	for _, name := range sorted(fields) {
		read, known := requestFields[name]
		if !known {
			return req, fmt.Errorf("%s: unknown field; a request has %s", redact.Quote(name), sorted(requestFields))
		}
		if err := read(&req, fields[name]); err != nil {
			return req, fmt.Errorf("%s: %w", name, err)
		}
	}
	return req, nil
}

// requestFields reads each field of a request.
var requestFields = map[string]func(*request, json.RawMessage) error{
	"action": func(r *request, raw json.RawMessage) error {
		if decode(raw, &r.action) != nil || !slices.Contains([]purge.Action{purge.Purge, purge.DryRun, purge.Check}, r.action) {
			return fmt.Errorf("must be %s, %s or %s", purge.Purge, purge.DryRun, purge.Check)
		}
		return nil
	},
	"databases": func(r *request, raw json.RawMessage) error {
		var names []string
		if decode(raw, &names) != nil || len(names) == 0 {
			return errors.New("must be a list of database names, not empty")
		}
		if err := purge.CheckNames(names); err != nil {
			return err
		}
		for _, name := range names {
			if strings.ContainsAny(name, "*?!,") {
				return errors.New("must hold plain names, and no patterns")
			}
		}
		r.databases = names
		return nil
	},
	"tables": func(r *request, raw json.RawMessage) error {
		var names []string
		if decode(raw, &names) != nil || len(names) == 0 {
			return errors.New("must be a list of names of tables, not empty")
		}
		_, err := purge.TablesNamed(names)
		r.tables = names
		return err
	},
	"gracePeriod": func(r *request, raw json.RawMessage) error { return positiveDuration(raw, &r.grace) },
	"maxDuration": func(r *request, raw json.RawMessage) error { return positiveDuration(raw, &r.maxDuration) },
	"maxRows": func(r *request, raw json.RawMessage) error {
		if decode(raw, &r.maxRows) != nil || r.maxRows < 1 {
			return errors.New("must be a whole number, at least 1")
		}
		return nil
	},
	"batchSize": func(r *request, raw json.RawMessage) error {
		if decode(raw, &r.batchSize) != nil || r.batchSize < 1 {
			return errors.New("must be a whole number, at least 1")
		}
		return nil
	},
}

func positiveDuration(raw json.RawMessage, d *time.Duration) error {
	var text string
	err := decode(raw, &text)
	if err == nil {
		*d, err = time.ParseDuration(text)
	}
	if err != nil || *d <= 0 || *d > mostDuration {
		return fmt.Errorf(`must be a duration such as "30s" or "24h", above zero and at most %q`, brief(mostDuration))
	}
	return nil
}

// decode is json.Unmarshal that takes null for no value at all.
func decode(raw json.RawMessage, v any) error {
	if bytes.Equal(raw, []byte("null")) {
		return errors.New("null")
	}
	return json.Unmarshal(raw, v)
}

// object reads a JSON object and refuses what encoding/json lets pass: null, a
// field that comes twice, bytes that are no text, and anything behind the object.
// notOne is the error for what is no object.
func object(payload []byte, notOne error) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(payload))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') || !utf8.Valid(payload) {
		return nil, notOne
	}
	fields := map[string]json.RawMessage{}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, notOne
		}
		var value json.RawMessage
		if decoder.Decode(&value) != nil {
			return nil, notOne
		}
		if _, twice := fields[name.(string)]; twice {
			return nil, fmt.Errorf("%s: comes twice", redact.Quote(name.(string)))
		}
		fields[name.(string)] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, notOne
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, notOne
	}
	return fields, nil
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// refuse returns why the configuration does not allow the request: a request
// can narrow it, never widen it. allows tells whether a database is among those of
// DATABASES.
func (r request) refuse(p purge.Policy, tables []purge.Table, allows func(name string) bool) error {
	if r.grace > 0 && r.grace < p.Grace {
		return fmt.Errorf("gracePeriod: is shorter than the configured GRACE_PERIOD, %s", p.Grace)
	}
	for _, name := range r.tables {
		if !slices.ContainsFunc(tables, func(t purge.Table) bool { return t.Name == name }) {
			return fmt.Errorf("tables: %s is none of those in TABLES", name)
		}
	}
	for _, name := range r.databases {
		if !allows(name) {
			return fmt.Errorf("databases: %s is none of those that DATABASES allows", redact.Quote(name))
		}
	}
	return nil
}

// narrow returns p as the request has it: of two limits the smaller one.
func (r request) narrow(p purge.Policy) purge.Policy {
	p.Action = r.action
	p.Grace = max(p.Grace, r.grace)
	p.MaxRows = smaller(p.MaxRows, r.maxRows)
	p.BatchSize = smaller(p.BatchSize, r.batchSize)
	p.MaxDuration = smaller(p.MaxDuration, r.maxDuration)
	return p
}

// narrowTables returns those of tables that the request asks for.
func (r request) narrowTables(tables []purge.Table) []purge.Table {
	if r.tables == nil {
		return tables
	}
	return slices.DeleteFunc(slices.Clone(tables), func(t purge.Table) bool { return !slices.Contains(r.tables, t.Name) })
}

// smaller returns the smaller of two limits of which 0 is none.
func smaller[T int | int64 | time.Duration](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
