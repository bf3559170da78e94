package emf

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"
)

func TestALineIsWhatCloudWatchReads(t *testing.T) {
	run := Run{
		Namespace: "EdFi/TokenPurge", FunctionName: "purge-tokens", Database: "EdFi_Admin", PerDatabase: true,
		Time:        time.UnixMilli(1_763_906_400_123),
		DeletedRows: 1234, Batches: 2, Duration: 210_500 * time.Microsecond, OldestExpiredAge: new(90 * time.Second),
		StopReason: "drained", Engine: "postgres", RequestID: "r-1", Version: "1.2.3", Cutoff: "2026-11-23T14:00:00Z",
	}
	const metrics = `[
		{"Name": "DeletedRows", "Unit": "Count"}, {"Name": "Batches", "Unit": "Count"},
		{"Name": "Duration", "Unit": "Milliseconds"}, {"Name": "Failures", "Unit": "Count"},
		{"Name": "Incomplete", "Unit": "Count"}, {"Name": "OldestExpiredAge", "Unit": "Seconds"}]`
	line := write(t, run)
	equal(t, line, `{
		"_aws": {"Timestamp": 1763906400123, "CloudWatchMetrics": [
			{"Namespace": "EdFi/TokenPurge", "Dimensions": [["FunctionName"]], "Metrics": `+metrics+`},
			{"Namespace": "EdFi/TokenPurge", "Dimensions": [["FunctionName", "Database"]], "Metrics": `+metrics+`}]},
		"FunctionName": "purge-tokens", "Database": "EdFi_Admin",
		"DeletedRows": 1234, "Batches": 2, "Duration": 210.5, "Failures": 0, "Incomplete": 0, "OldestExpiredAge": 90,
		"database": "EdFi_Admin", "stopReason": "drained", "engine": "postgres", "requestId": "r-1", "version": "1.2.3",
		"cutoff": "2026-11-23T14:00:00Z"}`)
	if bytes.Count(line, []byte("\n")) != 1 || !bytes.HasSuffix(line, []byte("\n")) {
		t.Errorf("not one line: %q", line)
	}
}

// parsed is what a test looks at in a line.
type parsed struct {
	AWS struct {
		CloudWatchMetrics []struct {
			Dimensions [][]string
			Metrics    []metric
		}
	} `json:"_aws"`
	Failures, Incomplete, DeletedRows int
	OldestExpiredAge                  *float64
	Database                          any `json:"-"` // encoding/json takes "database" for it
}

func TestAFailureBeforeAnyDatabaseHasTheFunctionAsItsOnlyDimension(t *testing.T) {
	got := parse(t, Run{Namespace: "N", FunctionName: "f", PerDatabase: true, Failed: true, Incomplete: true, StopReason: "error", RequestID: "r"})
	if d := got.AWS.CloudWatchMetrics; len(d) != 1 || !reflect.DeepEqual(d[0].Dimensions, [][]string{{"FunctionName"}}) {
		t.Errorf("directives %v", d)
	}
	if got.Failures != 1 || got.Incomplete != 1 || got.DeletedRows != 0 || got.Database != nil {
		t.Errorf("got %+v", got)
	}
}

func TestAnUnknownAgeIsAbsentAndNever0(t *testing.T) {
	got := parse(t, Run{Namespace: "N", FunctionName: "f", Database: "d", PerDatabase: true})
	if got.OldestExpiredAge != nil {
		t.Errorf("age %v", *got.OldestExpiredAge)
	}
	for _, d := range got.AWS.CloudWatchMetrics {
		for _, m := range d.Metrics {
			if m.Name == "OldestExpiredAge" {
				t.Error("the directive names a metric that is not there")
			}
		}
	}
	if got = parse(t, Run{OldestExpiredAge: new(time.Duration)}); got.OldestExpiredAge == nil || *got.OldestExpiredAge != 0 {
		t.Errorf("an age of 0 is %v", got.OldestExpiredAge)
	}
}

func TestWithoutADimensionForEachDatabaseItsNameIsAPropertyAlone(t *testing.T) {
	line := write(t, Run{Namespace: "N", FunctionName: "f", Database: "d"})
	got := parse(t, Run{Namespace: "N", FunctionName: "f", Database: "d"})
	if got.Database != nil || len(got.AWS.CloudWatchMetrics) != 1 || !bytes.Contains(line, []byte(`"database":"d"`)) {
		t.Errorf("got %s", line)
	}
}

func TestADimensionIsASCIIAndNoTwoNamesShareOne(t *testing.T) {
	for name, want := range map[string]string{
		"EdFi_Admin":        "EdFi_Admin",
		"EdFi Admin-1.2:x":  "EdFi Admin-1.2:x",
		"Bezirk_Zürich":     "Bezirk_Z%C3%BCrich",
		"Bezirk_Z%C3%BCric": "Bezirk_Z%25C3%25BCric",
		"管":                 "%E7%AE%A1",
		":x":                "%3Ax",
		" ":                 "%20",
		"a\nb":              "a%0Ab",
		"bad\xff":           "bad%FF",
	} {
		got := parse(t, Run{Namespace: "N", FunctionName: "f", Database: name, PerDatabase: true})
		if got.Database != want {
			t.Errorf("%q: %v, want %s", name, got.Database, want)
		}
	}
}

func write(t *testing.T, r Run) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, r); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func parse(t *testing.T, r Run) (p parsed) {
	t.Helper()
	var fields map[string]any
	if err := errors.Join(json.Unmarshal(write(t, r), &p), json.Unmarshal(write(t, r), &fields)); err != nil {
		t.Fatal(err)
	}
	p.Database = fields["Database"]
	return p
}

func equal(t *testing.T, got []byte, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
