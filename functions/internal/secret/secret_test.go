package secret

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
	for _, text := range []string{"\ufeff{\"username\":\"u\",\"password\":\"p\"}", "\ufeffhost=h;username=u;password=p", "{\"connectionString\":\"\ufeffhost=h;username=u;password=p\"}"} {
		if login, err := Parse(text); err != nil || login.Username.Reveal() != "u" || login.Password.Reveal() != "p" {
			t.Errorf("with a byte-order mark: %+v, %v", login, err)
		}
	}
	if login, err := Parse(`{"username":"u","password":"p"}`); err != nil || login.Port != 0 || login.Host != "" {
		t.Errorf("managed by RDS: %+v, %v", login, err)
	}
}

func TestParseNamesFieldsNotValues(t *testing.T) {
	for text, want := range map[string]string{
		`hunter2`:                                "neither a JSON object nor a connection string",
		``:                                       "neither a JSON object nor a connection string",
		"\ufeff":                                 "neither a JSON object nor a connection string",
		`{"username":"u","password":"hunter2",}`: "as JSON it has a comma too much before byte 38",
		"{\"username\":\"u\",\"password\":\"a=hunter2\",\n}":          "as JSON it has a comma too much before byte 41",
		`{"username":"u",,"password":"hunter2"}`:                      "a comma too much",
		`{"username":"u" "password":"hunter2"}`:                       "as JSON it has a mistake at byte 17",
		`{"username":"u","password":"hunter2"`:                        "as JSON it breaks off",
		`{username="u";password="hunter2"}`:                           "as JSON it has a mistake at byte 2",
		`null`:                                                        "neither a JSON object nor a connection string",
		`["hunter2"]`:                                                 "neither a JSON object nor a connection string",
		`{"username":"hunter2"}`:                                      "password is missing",
		`{"password":"hunter2"}`:                                      "username is missing",
		`{"username":"","password":"hunter2"}`:                        "username is missing",
		`{"username":null,"password":"hunter2"}`:                      "username is missing",
		`{"username":["hunter2"],"password":1}`:                       "password must be a string",
		`{"username":"u","password":"p","port":0}`:                    "port must be a number",
		`{"username":"u","password":"p","port":"hunter2"}`:            "port must be a number",
		`{"username":"u","password":"p","port":65536}`:                "port must be a number",
		`{"username":"u","password":"hunter2"} {}`:                    "more than one",
		`{"username":"u","password":"p","password":"hunter2"}`:        "it gives the password twice",
		`{"host":"h","username":"u","password":"hunter2","host":"x"}`: "it gives the host twice",
		`{"username":"u","password":"p","Password":"hunter2"}`:        "Password must be called password",
		`{"USERNAME":"u","password":"hunter2"}`:                       "USERNAME must be called username",
		`{"username":"u","password":"hunter2","Host":"h"}`:            "Host must be called host",
		`{"username":"u","password":"hunter2","PORT":5433}`:           "PORT must be called port",
		`{"username":"u","password":"hunter2","dbName":"d"}`:          "dbName must be called dbname",
		`{"username":"u","password":"hunter2","database":"d"}`:        "database must be called dbname",
		`{"user":"u","password":"hunter2","Hostname":"h"}`:            "Hostname must be called host; user must be called username",
		`{"ConnectionString":"host=h;username=u;password=hunter2"}`:   "ConnectionString must be called connectionString",
		`postgres://u:hunter2@h/d?sslmode=require`:                    "it is a URL",
		utf16LE(`{"username":"u","password":"hunter2"}`):              "UTF-16",
		utf16LE(`host=h;username=u;password=hunter2`):                 "UTF-16",
	} {
		_, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// utf16LE is text as Windows saves it, as far as it is ASCII.
func utf16LE(text string) string {
	return "\xff\xfe" + strings.Join(strings.Split(text, ""), "\x00") + "\x00"
}

// What RDS and others keep beside a login is theirs.
func TestParseLeavesOtherFieldsAlone(t *testing.T) {
	login, err := Parse(`{"username":"u","password":"p","dbname":"d","database":"other","masterarn":"a","resourceId":"r","replicas":[1,{"host":"x"}],"tags":null}`)
	if err != nil || login.Database != "d" || login.Host != "" {
		t.Errorf("%+v, %v", login, err)
	}
}

func TestParseReadsConnectionStrings(t *testing.T) {
	for text, want := range map[string]string{
		`host=db.example;port=5433;username=u;password=p;database=EdFi_Admin;pooling=true`:                          "postgres db.example 5433 EdFi_Admin u p",
		`Host=db.example; Username = u ; Password="p;x""y=z" ; Database=EdFi_Admin;`:                                `postgres db.example 0 EdFi_Admin u p;x"y=z`,
		`Server=db.example,1434;Database=EdFi_Admin;User Id=u;Password='p;''=';Encrypt=True`:                        `sqlserver db.example 1434 EdFi_Admin u p;'=`,
		`Data Source=tcp:db.example;Initial Catalog=EdFi_Admin;UID=u;PWD=p`:                                         "sqlserver db.example 0 EdFi_Admin u p",
		`Server=db.example\SQL2019,1500;User Id=u;Password=p;Integrated Security=false`:                             "sqlserver db.example 1500  u p",
		`server=db.example;user id=u;password=p=q;database=EdFi_Admin`:                                              " db.example 0 EdFi_Admin u p=q",
		`server=db.example;user id=u;password=p;Encrypt=true`:                                                       "sqlserver db.example 0  u p",
		`server=db.example;UID=u;password=p;Trust Server Certificate=true`:                                          " db.example 0  u p", // Npgsql takes these too
		`Server=TCP:db.example,1434;User Id=u;Password=p`:                                                           "sqlserver db.example 1434  u p",
		`{"connectionString":"host=h;database=d","username":"u","password":"p"}`:                                    "postgres h 0 d u p",
		`{"connectionString":"Server=h\\i;User Id=u;Password=p","port":1435}`:                                       "sqlserver h 1435  u p",
		`{"connectionString":"Server=h,1433;User Id=u;Password=p","port":"1435","host":"other"}`:                    "sqlserver other 1435  u p",
		`{"connectionString":"host=h;username=u;password=p;database=d"}`:                                            "postgres h 0 d u p",
		`{"connectionString":"server=h;user id=u;password=p","engine":"sqlserver-se","port":1435,"dbname":"Other"}`: "sqlserver-se h 1435 Other u p",
	} {
		l, err := Parse(text)
		if got := fmt.Sprintf("%s %s %d %s %s %s", l.Engine, l.Host, l.Port, l.Database, l.Username.Reveal(), l.Password.Reveal()); err != nil || got != want {
			t.Errorf("%s:\n%q, %v, want\n%q", text, got, err, want)
		}
	}
	// Strict encryption is more than what there is without it, none at all is less.
	for text, want := range map[string]string{
		`Server=h;User Id=u;Password=p;Encrypt=Strict`:                         Strict,
		`{"connectionString":"Server=h;User Id=u;Password=p;Encrypt=Strict"}`:  Strict,
		`Host=h;Username=u;Password=p;SSL Mode=Disable`:                        "",
		`{"connectionString":"Host=h;Username=u;Password=p;SSL Mode=Disable"}`: "",
	} {
		if login, err := Parse(text); err != nil || login.TLS != want {
			t.Errorf("%s: %+v, %v", text, login, err)
		}
	}
	for text, want := range map[string]string{
		`host=h;password=hunter2`:                                    "username is missing",
		`host=h;username=hunter2`:                                    "password is missing",
		`host=h;username=u;password="hunter2`:                        "quote",
		`host=h;username=u;password="hunter2"x`:                      "quote",
		`host=h;hunter2;username=u;password=p`:                       "keyword=value",
		`=hunter2`:                                                   "keyword=value",
		`host=h;port=hunter2;username=u;password=p`:                  "port",
		`Server=h;Database=d;Integrated Security=SSPI`:               "Integrated Security",
		`Server=np:\\h\pipe\hunter2;User Id=u;Password=p`:            "a pipe of SQL Server",
		`Server=\\h\pipe\hunter2;User Id=u;Password=p`:               "a pipe of SQL Server",
		`Data Source=h\hunter2;User Id=u;Password=p`:                 "give the host alone and the instance's port",
		`host=h;server=hunter2;username=u;password=p`:                "host twice",
		`{"connectionString":"hunter2"}`:                             "keyword=value",
		`{"connectionString":"host=h","username":"hunter2"}`:         "password is missing",
		`{"connectionString":5,"username":"u","password":"hunter2"}`: "connectionString must be a string",
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
		_, got := Fetch(t.Context(), fake(func(context.Context) (*secretsmanager.GetSecretValueOutput, error) { return nil, err }), "x", Current)
		if got == nil || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v, want %q", err, got, want)
		}
	}
	for err, unread := range map[error]bool{
		&types.ResourceNotFoundException{}:                     false,
		&types.InternalServiceError{}:                          true,
		&smithy.GenericAPIError{Code: "AccessDeniedException"}: true,
		errors.New("dial tcp: lookup failed"):                  true,
	} {
		_, got := Fetch(t.Context(), fake(func(context.Context) (*secretsmanager.GetSecretValueOutput, error) { return nil, err }), "x", Current)
		if errors.Is(got, ErrUnread) != unread {
			t.Errorf("%v: unread is %t", err, !unread)
		}
	}
	_, err := Fetch(t.Context(), fake(func(context.Context) (*secretsmanager.GetSecretValueOutput, error) {
		return &secretsmanager.GetSecretValueOutput{SecretBinary: []byte{1}}, nil
	}), "x", Current)
	if err == nil || !strings.Contains(err.Error(), "binary") {
		t.Errorf("binary: %v", err)
	}
}

func TestFetchGivesUpWhereNothingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := Fetch(t.Context(), fake(func(ctx context.Context) (*secretsmanager.GetSecretValueOutput, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}), "x", Current)
		if err == nil || !strings.Contains(err.Error(), "NAT gateway or an interface endpoint") || time.Since(start) > 9*time.Second {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	})
}
