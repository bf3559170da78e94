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
	"unicode"

	"edfi-token-purge/functions/internal/purge"
)

// request is what an event asks for; the zero value of a field leaves it to
// the configuration.
type request struct {
	action      purge.Action
	databases   []string
	grace       time.Duration
	maxRows     int64
	batchSize   int
	maxDuration time.Duration
}

// parseEvent reads an EventBridge event, {} or a request. Its error names the
// field at fault.
func parseEvent(payload []byte) (request, error) {
	req := request{action: purge.Purge}
	fields, err := object(payload)
	if err != nil {
		return req, err
	}
	_, detailType := fields["detail-type"]
	_, source := fields["source"]
	envelope := detailType && source
	for _, name := range sorted(fields) {
		read, known := requestFields[name]
		switch {
		case envelope && known:
			return req, fmt.Errorf("%s: an EventBridge event carries no request; let the rule send a constant input instead", name)
		case envelope:
			continue // what AWS puts there is AWS's business
		case !known:
			return req, fmt.Errorf("%q: unknown field; a request has %s", name, sorted(requestFields))
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
		actions := []purge.Action{purge.Purge, purge.DryRun, purge.Check}
		if decode(raw, &r.action) != nil || !slices.Contains(actions, r.action) {
			return fmt.Errorf("must be one of %q", actions)
		}
		return nil
	},
	"databases": func(r *request, raw json.RawMessage) error {
		var names []string
		if decode(raw, &names) != nil || len(names) == 0 {
			return errors.New("must be a list of database names, not empty")
		}
		for _, name := range names {
			if name == "" || strings.ContainsAny(name, "*?!,") || strings.Contains(name, "://") || strings.ContainsFunc(name, unicode.IsControl) {
				return errors.New("must hold plain names, no patterns and no URLs")
			}
			r.databases = append(r.databases, name)
		}
		return nil
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
	if err != nil || *d <= 0 {
		return errors.New(`must be a duration such as "30s" or "24h", above zero`)
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
// field that comes twice, and anything behind the object.
func object(payload []byte) (map[string]json.RawMessage, error) {
	notOne := errors.New("the event must be a JSON object: an EventBridge event, {} or a request")
	decoder := json.NewDecoder(bytes.NewReader(payload))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
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
			return nil, fmt.Errorf("%q: comes twice", name)
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
// can narrow it, never widen it. allowed is nil while it is not known; fold
// ignores the letter case of names.
func (r request) refuse(p purge.Policy, allowed *purge.Selection, fold bool) error {
	if r.grace > 0 && r.grace < p.Grace {
		return fmt.Errorf("gracePeriod: is shorter than the configured GRACE_PERIOD, %s", p.Grace)
	}
	for _, name := range r.databases {
		if allowed != nil && !allowed.Allows(name, fold) {
			return fmt.Errorf("databases: %q is none of those that DATABASES allows", name)
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

// smaller returns the smaller of two limits of which 0 is none.
func smaller[T int | int64 | time.Duration](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
