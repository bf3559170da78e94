// Package secret reads a database login from AWS Secrets Manager.
package secret

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"

	"edfi-token-purge/functions/internal/redact"
)

// fetchTimeout bounds the call, its retries included: in a VPC without NAT or
// endpoint it would hang until the function is killed.
const fetchTimeout = 8 * time.Second

// The stages of a secret's versions. While a rotation runs, either may be the one
// that works.
const (
	Current  = "AWSCURRENT"
	Previous = "AWSPREVIOUS"
)

// Login is what a secret holds. Only Username and Password are in every one.
type Login struct {
	Engine   string // as RDS names it; "" where the secret doesn't say
	Host     string
	Port     uint16 // 0 where the secret doesn't say
	Database string
	Username redact.Secret
	Password redact.Secret
	TLS      string // what a connection string or a URL asks for: Disable, Strict or ""
}

// What there is beside verified TLS, which satisfies all else that can be asked for. The
// words are those of DB_TLS.
const (
	Disable = "disable"
	Strict  = "strict" // TDS 8.0 of SQL Server: encrypted from the first byte
)

// Getter is the part of the Secrets Manager client that Fetch uses.
type Getter interface {
	GetSecretValue(context.Context, *secretsmanager.GetSecretValueInput, ...func(*secretsmanager.Options)) (*secretsmanager.GetSecretValueOutput, error)
}

// ErrUnread is beside the error for a secret that could not be read, but may be there.
var ErrUnread = errors.New("the secret is unread")

// unread is an error of Secrets Manager, or of the way to it.
type unread struct{ error }

func (unread) Is(target error) bool { return target == ErrUnread }

// Fetch reads one version of the secret. Its errors say what to do and
// quote no value.
func Fetch(ctx context.Context, client Getter, id, stage string) (Login, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	out, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &id, VersionStage: &stage})
	if err != nil {
		return Login{}, explain(ctx, err)
	}
	if out.SecretString == nil {
		return Login{}, errors.New("the secret can't be used: it is binary; it must be JSON text with username and password")
	}
	return Parse(*out.SecretString)
}

func explain(ctx context.Context, err error) error {
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "ResourceNotFoundException" {
		return errors.New("SECRET_ID names no secret in this account and region (ResourceNotFoundException)")
	}
	return unread{explainUnread(ctx, err)}
}

func explainUnread(ctx context.Context, err error) error {
	var api smithy.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode() == "AccessDeniedException":
		return errors.New("access denied: the function's role needs secretsmanager:GetSecretValue on the secret, and kms:Decrypt where a key of your own encrypts it (AccessDeniedException)")
	case errors.As(err, &api):
		return fmt.Errorf("answer of Secrets Manager: %s (%s)", redact.Text(api.ErrorMessage()), api.ErrorCode())
	case ctx.Err() != nil:
		return errors.New("no answer from Secrets Manager in time: a function in a VPC reaches it through a NAT gateway or an interface endpoint only; check that one is there and that its security group admits the function")
	}
	return fmt.Errorf("can't reach Secrets Manager: %s", redact.Text(err.Error()))
}

// Parse reads a secret: the JSON that RDS keeps, or a connection string as Ed-Fi
// keeps it, as the whole secret or in the JSON under connectionString. Errors
// name fields, never values.
func Parse(text string) (Login, error) {
	text = withoutBOM(text)
	login, err := parse(text)
	if err == nil {
		err = login.complete()
	}
	if login.TLS == Disable { // which is for the settings to say
		login.TLS = ""
	}
	if err != nil {
		return Login{}, fmt.Errorf("the secret can't be used: %w", err)
	}
	return login, nil
}

// withoutBOM returns text without the mark that some editors put at its beginning.
func withoutBOM(text string) string { return strings.TrimPrefix(text, "\ufeff") }

const neither = "it is neither a JSON object nor a connection string"

func parse(text string) (Login, error) {
	var fields map[string]json.RawMessage
	decoder := json.NewDecoder(strings.NewReader(text))
	err := decoder.Decode(&fields)
	switch {
	case 3*strings.Count(text, "\x00") > len(text):
		return Login{}, errors.New(neither + ", but binary or UTF-16: store it as text in UTF-8")
	case err != nil && strings.HasPrefix(strings.TrimSpace(text), "{"):
		return Login{}, mistake(text, err)
	case err == nil && fields != nil:
		if _, err := decoder.Token(); err != io.EOF {
			return Login{}, errors.New("it holds more than one JSON object, or something behind it")
		}
		if name := twice(text); name != "" {
			return Login{}, fmt.Errorf("it gives the %s twice", name)
		}
		return parseObject(fields)
	case scheme.MatchString(text):
		return Login{}, errors.New("it is a URL; it must be a JSON object or a connection string of Ed-Fi")
	case json.Valid([]byte(text)) || !strings.Contains(text, "="):
		return Login{}, errors.New(neither + "; it must hold username and password, and may hold engine, host, port and dbname")
	}
	return parseConnectionString(text, nil)
}

// known are the fields of a secret, and misnamed what others call them.
var (
	known    = []string{"engine", "host", "port", "dbname", "username", "password", "connectionString"}
	misnamed = map[string]string{"database": "dbname", "db": "dbname", "hostname": "host", "user": "username", "connection_string": "connectionString"}
)

// twice returns a field that a login has in text more than once, of which a reader takes
// whichever it likes; "" is none.
func twice(text string) string {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.Token() //nolint:errcheck // the text was read before
	seen := map[string]bool{}
	for decoder.More() {
		name, _ := decoder.Token()
		var value json.RawMessage
		if decoder.Decode(&value) != nil {
			return ""
		}
		if name, _ := name.(string); seen[name] && slices.Contains(known, name) {
			return name
		}
		seen[fmt.Sprint(name)] = true
	}
	return ""
}

// misspelled returns a fault for each field that is called otherwise than it must be: it
// would count for nothing, and another server or database be purged.
func misspelled(fields map[string]json.RawMessage) (faults []string) {
	for name := range fields {
		for _, right := range known {
			_, there := fields[right]
			if name != right && strings.EqualFold(name, right) || !there && misnamed[strings.ToLower(name)] == right {
				faults = append(faults, fmt.Sprintf("%s must be called %s", name, right))
			}
		}
	}
	slices.Sort(faults)
	return faults
}

// mistake says where text stops being JSON. The decoder's own error quotes it.
func mistake(text string, err error) error {
	syntax, ok := errors.AsType[*json.SyntaxError](err)
	if !ok || syntax.Offset < 1 || syntax.Offset > int64(len(text)) { // it ends too soon
		return errors.New(neither + ": as JSON it breaks off")
	}
	before := strings.TrimRight(text[:syntax.Offset-1], " \t\r\n")
	if strings.HasSuffix(before, ",") && strings.ContainsAny(text[syntax.Offset-1:syntax.Offset], "}],") {
		return fmt.Errorf(neither+": as JSON it has a comma too much before byte %d", syntax.Offset)
	}
	return fmt.Errorf(neither+": as JSON it has a mistake at byte %d", syntax.Offset)
}

// parseObject reads the fields of a JSON object.
func parseObject(fields map[string]json.RawMessage) (Login, error) {
	faults := misspelled(fields)
	read := func(name string) string {
		raw, ok := fields[name]
		if !ok || bytes.Equal(raw, []byte("null")) {
			return ""
		}
		var value string
		if json.Unmarshal(raw, &value) != nil {
			faults = append(faults, name+" must be a string")
		}
		return value
	}
	values := map[string]string{}
	for _, f := range [][2]string{{"host", "host"}, {"dbname", "database"}, {"username", "username"}, {"password", "password"}} {
		if value := read(f[0]); value != "" {
			values[f[1]] = value
		}
	}
	// RDS writes a number, other tools a string.
	if port := strings.Trim(string(fields["port"]), `"`); port != "" && port != "null" {
		values["port"] = port
	}
	engine, whole := read("engine"), read("connectionString")
	login, err := newLogin(values)
	if err != nil {
		faults = append(faults, err.Error())
	}
	if faults != nil {
		return Login{}, errors.New(strings.Join(faults, "; "))
	}
	if whole != "" {
		if login, err = parseConnectionString(withoutBOM(whole), values); err != nil {
			return Login{}, fmt.Errorf("%w (in connectionString)", err)
		}
	}
	login.Engine = cmp.Or(engine, login.Engine)
	return login, nil
}

// newLogin makes a login of values by field. It may be incomplete.
func newLogin(values map[string]string) (login Login, err error) {
	login.Host, login.Database = values["host"], values["database"]
	login.Username, login.Password = redact.NewSecret(values["username"]), redact.NewSecret(values["password"])
	if port := values["port"]; port != "" {
		login.Port, err = parsePort(port)
	}
	return login, err
}

// complete returns an error for a missing user or password, which only the
// secret can give.
func (l Login) complete() error {
	var missing []string
	if l.Username.Reveal() == "" {
		missing = append(missing, "username")
	}
	if l.Password.Reveal() == "" {
		missing = append(missing, "password")
	}
	if missing != nil {
		return fmt.Errorf("%s is missing", strings.Join(missing, " and "))
	}
	return nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("port must be a number from 1 to 65535")
	}
	return uint16(port), nil
}
