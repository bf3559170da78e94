package secret

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/aws/smithy-go"
)

func TestParseReadsWhatRDSWrites(t *testing.T) {
	login, err := Parse(`{"engine":"aurora-postgresql","host":"db.example","port":"6432","username":"u","password":"p;'\"@/ ","dbname":"EdFi_Admin","dbClusterIdentifier":"c"}`)
	if err != nil {
		t.Fatal(err)
	}
	if login.Engine != "aurora-postgresql" || login.Host != "db.example" || login.Port != 6432 || login.Database != "EdFi_Admin" ||
		login.Username.Reveal() != "u" || login.Password.Reveal() != `p;'"@/ ` {
		t.Errorf("got %+v", login)
	}
	for _, port := range []string{`5432`, `"5432"`} {
		if login, err := Parse(`{"username":"u","password":"p","port":` + port + `}`); err != nil || login.Port != 5432 {
			t.Errorf("port %s: %d, %v", port, login.Port, err)
		}
	}
	if login, err := Parse(`{"username":"u","password":"p"}`); err != nil || login.Port != 0 || login.Host != "" {
		t.Errorf("managed by RDS: %+v, %v", login, err)
	}
}

func TestParseNamesFieldsNotValues(t *testing.T) {
	for text, want := range map[string]string{
		`hunter2`:                                "no JSON object",
		``:                                       "no JSON object",
		`null`:                                   "no JSON object",
		`["hunter2"]`:                            "no JSON object",
		`{"username":"hunter2"}`:                 "password is missing",
		`{"password":"hunter2"}`:                 "username is missing",
		`{"username":"","password":"hunter2"}`:   "username is missing",
		`{"username":null,"password":"hunter2"}`: "username is missing",
		`{"username":["hunter2"],"password":1}`:  "username must be a string; password must be a string",
		`{"username":"u","password":"p","port":0}`:         "port must be a number",
		`{"username":"u","password":"p","port":"hunter2"}`: "port must be a number",
		`{"username":"u","password":"p","port":65536}`:     "port must be a number",
		`{"username":"u","password":"hunter2"} {}`:         "more than one",
	} {
		_, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestLoginPrintsAsRedacted(t *testing.T) {
	login, _ := Parse(`{"username":"joe","password":"hunter2"}`)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{login, &login, []Login{login}} {
			if out := fmt.Sprintf(verb, v); strings.Contains(out, "hunter2") || strings.Contains(out, "joe") || strings.Contains(out, "68756e74657232") {
				t.Errorf("%s: %s", verb, out)
			}
		}
	}
}

type fake func(context.Context) (*secretsmanager.GetSecretValueOutput, error)

func (f fake) GetSecretValue(ctx context.Context, _ *secretsmanager.GetSecretValueInput, _ ...func(*secretsmanager.Options)) (*secretsmanager.GetSecretValueOutput, error) {
	return f(ctx)
}

func TestFetchSaysWhatToDo(t *testing.T) {
	for want, err := range map[string]error{
		"names no secret":               &types.ResourceNotFoundException{},
		"secretsmanager:GetSecretValue": &smithy.GenericAPIError{Code: "AccessDeniedException", Message: "no"},
		"(ThrottlingException)":         &smithy.GenericAPIError{Code: "ThrottlingException", Message: "slow down"},
		"can't reach":                   errors.New("dial tcp: lookup failed"),
	} {
		_, got := Fetch(t.Context(), fake(func(context.Context) (*secretsmanager.GetSecretValueOutput, error) { return nil, err }), "x")
		if got == nil || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v, want %q", err, got, want)
		}
	}
	_, err := Fetch(t.Context(), fake(func(context.Context) (*secretsmanager.GetSecretValueOutput, error) {
		return &secretsmanager.GetSecretValueOutput{SecretBinary: []byte{1}}, nil
	}), "x")
	if err == nil || !strings.Contains(err.Error(), "binary") {
		t.Errorf("binary: %v", err)
	}
}

func TestFetchGivesUpWhereNothingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := Fetch(t.Context(), fake(func(ctx context.Context) (*secretsmanager.GetSecretValueOutput, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}), "x")
		if err == nil || !strings.Contains(err.Error(), "NAT gateway or an interface endpoint") {
			t.Errorf("got %v", err)
		}
	})
}
