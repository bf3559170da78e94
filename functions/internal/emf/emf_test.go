package emf

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestALineIsWhatCloudWatchReads(t *testing.T) {
	var out bytes.Buffer
	run := Run{
		Namespace: "EdFi/TokenPurge", FunctionName: "purge-tokens", Database: "EdFi_Admin",
		Time:        time.UnixMilli(1_763_906_400_123),
		DeletedRows: 1234, Batches: 2, Duration: 210_500 * time.Microsecond, OldestExpiredAge: 90 * time.Second,
		StopReason: "drained", Engine: "postgres", RequestID: "r-1", Cutoff: "2026-11-23T14:00:00Z",
	}
	if err := Write(&out, run); err != nil {
		t.Fatal(err)
	}
	want := `{
		"_aws": {"Timestamp": 1763906400123, "CloudWatchMetrics": [{
			"Namespace": "EdFi/TokenPurge",
			"Dimensions": [["FunctionName"], ["FunctionName", "Database"]],
			"Metrics": [
				{"Name": "DeletedRows", "Unit": "Count"}, {"Name": "Batches", "Unit": "Count"},
				{"Name": "Duration", "Unit": "Milliseconds"}, {"Name": "Failures", "Unit": "Count"},
				{"Name": "OldestExpiredAge", "Unit": "Seconds"}]}]},
		"FunctionName": "purge-tokens", "Database": "EdFi_Admin",
		"DeletedRows": 1234, "Batches": 2, "Duration": 210.5, "Failures": 0, "OldestExpiredAge": 90,
		"stopReason": "drained", "engine": "postgres", "requestId": "r-1", "cutoff": "2026-11-23T14:00:00Z"}`
	equal(t, out.Bytes(), want)
	if bytes.Count(out.Bytes(), []byte("\n")) != 1 || !bytes.HasSuffix(out.Bytes(), []byte("\n")) {
		t.Errorf("not one line: %q", out.String())
	}
}

func TestAFailureBeforeAnyDatabaseHasTheFunctionAsItsOnlyDimension(t *testing.T) {
	var out bytes.Buffer
	if err := Write(&out, Run{Namespace: "N", FunctionName: "f", Failed: true, StopReason: "error", RequestID: "r"}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		AWS struct {
			CloudWatchMetrics []struct{ Dimensions [][]string }
		} `json:"_aws"`
		Failures, DeletedRows int
		Database              *string
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if d := got.AWS.CloudWatchMetrics[0].Dimensions; !reflect.DeepEqual(d, [][]string{{"FunctionName"}}) {
		t.Errorf("dimensions %v", d)
	}
	if got.Failures != 1 || got.DeletedRows != 0 || got.Database != nil {
		t.Errorf("got %s", out.String())
	}
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
