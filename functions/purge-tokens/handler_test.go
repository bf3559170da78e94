package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/lambdacontext"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
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

// catalogued is a server that only lists its databases.
type catalogued struct {
	purge.Engine
	names []string
}

func (c catalogued) Databases(context.Context, string) (all []purge.Database, err error) {
	for _, name := range c.names {
		all = append(all, purge.Database{Name: name})
	}
	return all, nil
}

func TestNamesThatDifferInCaseAreTwoWhereTheServerHasBoth(t *testing.T) {
	selection, err := purge.ParseSelection("EdFi*,!EdFi_TEMPLATE")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ engine, names, want string }{
		{"sqlserver", "edfi_a EdFi_B EdFi_Template", "edfi_a EdFi_B"},
		{"sqlserver", "EdFi_A EdFi_a EdFi_Template EdFi_TEMPLATE", "EdFi_A EdFi_a EdFi_Template"},
		{"postgres", "edfi_a EdFi_B", "EdFi_B"},
	} {
		e, _ := engineNamed(c.engine)
		databases, err := resolve(t.Context(), catalogued{names: strings.Fields(c.names)}, selection, e, secret.Login{})
		var got []string
		for _, d := range databases {
			got = append(got, d.Name)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

func TestStrictEncryptionIsForSQLServerAlone(t *testing.T) {
	for engine, want := range map[string]string{"postgres": "set DB_TLS=verify-full", "sqlserver-web": ""} {
		c, faults := readConfig(func(name string) string {
			return map[string]string{"DATABASE_URL": "postgres://u:p@db.example/EdFi_Admin", "DB_ENGINE": engine, "DB_TLS": "strict"}[name]
		})
		if faults != nil || !c.strict || c.plaintext {
			t.Fatalf("%+v, %v", c, faults)
		}
		_, err := (&handler{config: c}).fetch(t.Context(), secret.Current)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", engine, err)
		}
	}
}
