package main

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/lambdacontext"

	"edfi-token-purge/functions/internal/purge"
)

func TestAnAnswerIsNeverTooLong(t *testing.T) {
	result := purge.Result{Status: purge.Failed, DeletedRows: 7}
	for range 20_000 {
		result.Databases = append(result.Databases, purge.DatabaseResult{Database: "EdFi_Admin", Server: strings.Repeat("h", 200), Status: purge.Complete})
	}
	result.Databases[42] = purge.DatabaseResult{Database: "EdFi_Admin_42", Status: purge.Partial}
	text, err := answer(t.Context(), result)
	if err != nil || len(text) > mostBytes || !strings.Contains(string(text), "EdFi_Admin_42") {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestTheStateMachineGetsTheTotalsAlone(t *testing.T) {
	drain, err := os.ReadFile("../../infra/drain.yaml")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`"ClientContext": "([^"]+)"`).FindSubmatch(drain)
	if said == nil {
		t.Fatal("it says no client context")
	}
	text, err := base64.StdEncoding.DecodeString(string(said[1]))
	if err != nil {
		t.Fatal(err)
	}
	lc := &lambdacontext.LambdaContext{}
	if err := json.Unmarshal(text, &lc.ClientContext); err != nil {
		t.Fatal(err)
	}
	result := purge.Result{Status: purge.Partial, DeletedRows: 7, Databases: []purge.DatabaseResult{{Database: "EdFi_Admin"}}}
	got, err := answer(lambdacontext.NewContext(t.Context(), lc), result)
	if want := `{"status":"partial","action":"","deletedRows":7,"durationMs":0,"databases":[]}`; err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}
