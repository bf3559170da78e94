package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/fakeaws"
	"edfi-token-purge/functions/internal/testing/relay"
)

// Each secret of the test has a part that no quoting and no encoding alters, between
// characters that each of them alters.
const (
	secretUser     = "purge_wh0isit"
	secretPassword = `a/?#@%"'\;= s3cr3tc0re&`
	secretToken    = "deadbeef-0bad-4f00-8bad-c0ffee15600d"
)

var mustNotBeShown = []string{"wh0isit", "s3cr3tc0re", "deadbeef", "c0ffee15600d"}

// leaks causes one failure after the other and reads all that is written.
type leaks struct {
	database
	role string
}

// shown fails the test if written holds a secret, or lacks want, which tells that the
// intended failure happened.
func shown(t *testing.T, path, written, want string) {
	t.Helper()
	if !strings.Contains(written, want) {
		t.Errorf("%s: no %q in\n%s", path, want, written)
	}
	for _, part := range mustNotBeShown {
		if strings.Contains(strings.ToLower(written), part) {
			t.Errorf("%s: %q is shown in\n%s", path, part, written)
		}
	}
}

// invoke sends an event to functions that log everything, in both formats.
func (l leaks) invoke(t *testing.T, path, secretText, event, errorType, want string, env ...string) {
	t.Helper()
	id := l.put(secretText)
	for _, format := range []string{"JSON", "Text"} {
		f := start(t, append([]string{"SECRET_ID=" + id, "DATABASES=" + l.name, "AWS_LAMBDA_LOG_LEVEL=DEBUG", "AWS_LAMBDA_LOG_FORMAT=" + format}, env...)...)
		reply, lines := f.invoke(t, event)
		if reply.Error == nil || reply.Error.Type != errorType {
			t.Errorf("%s: %s, want %s", path, reply.Payload, errorType)
		}
		shown(t, path, lines+string(reply.Payload), want)
		f.Stop()
	}
}

// secret returns a secret for the role, with changes.
func (l leaks) secret(changes ...any) string {
	fields := map[string]any{"engine": "postgres", "host": stage.Postgres.Host, "port": stage.Postgres.Port, "username": l.role, "password": secretPassword}
	for i := 0; i < len(changes); i += 2 {
		fields[changes[i].(string)] = changes[i+1]
	}
	text, _ := json.Marshal(fields) // strings and numbers
	return string(text)
}

func newLeaks(t *testing.T) leaks {
	t.Helper()
	l := leaks{newDatabase(t, 200, 5), fmt.Sprintf("%s_%d", secretUser, created.Add(1))}
	l.exec(t, `CREATE ROLE "`+l.role+`" LOGIN SUPERUSER PASSWORD `+literal(secretPassword))
	l.exec(t, `INSERT INTO dbo.clientaccesstokens (id, expiration) VALUES ('`+secretToken+`', '2020-01-01')`)
	return l
}

func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

func TestNoFailureShowsASecretThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	l := newLeaks(t)
	connection := fmt.Sprintf("host=%s;username=%s;password=\"%s\"", "db.example", l.role, strings.ReplaceAll(secretPassword, `"`, `""`))
	for path, c := range map[string]struct{ secret, want string }{
		"text":               {secretPassword[:6] + "s3cr3tc0re", "neither a JSON object"},
		"a JSON string":      {`"s3cr3tc0re"`, "neither a JSON object"},
		"a JSON list":        {`["s3cr3tc0re"]`, "neither a JSON object"},
		"half a JSON object": {`{"username":"wh0isit","password":"s3cr3tc0re"`, "neither a JSON object"},
		"two JSON objects":   {l.secret() + l.secret(), "more than one"},
		"no password":        {`{"username":"wh0isit"}`, "password is missing"},
		"no user":            {`{"password":"s3cr3tc0re"}`, "username is missing"},
		"a number":           {l.secret("password", 1, "username", []string{"wh0isit"}), "must be a string"},
		"a bad port":         {l.secret("port", "s3cr3tc0re"), "port must be a number"},
		"a bad engine":       {l.secret("engine", "s3cr3tc0re"), "engine"},
		"a URL for a host":   {l.secret("host", "postgres://wh0isit:s3cr3tc0re@db.example/x"), "host"},
		"a URL for a name":   {l.secret("dbname", "postgres://wh0isit:s3cr3tc0re@db.example/x"), "database"},
		"a list for a host":  {l.secret("host", "db.example;password=s3cr3tc0re"), "host"},
		"an open quote":      {connection[:len(connection)-1], "quote"},
		"no keyword":         {connection + ";s3cr3tc0re", "keyword=value"},
		"two passwords":      {connection + ";pwd=other", "twice"},
		"no user in a list":  {"host=h;password=s3cr3tc0re", "username is missing"},
		"a URL":              {"postgres://wh0isit:s3cr3tc0re@db.example/x?sslmode=disable", "it is a URL"},
	} {
		l.invoke(t, path, c.secret, `{}`, "SecretError", c.want)
	}
}

func TestNoFailureOfADatabaseShowsASecret(t *testing.T) {
	t.Parallel()
	l := newLeaks(t)
	failed := func(path, secretText, want string, env ...string) {
		t.Helper()
		l.invoke(t, path, secretText, `{}`, "PurgeFailed", want, env...)
	}
	failed("a refused login", l.secret("password", secretPassword+"x"), "refused the login")
	failed("an unknown user", l.secret("username", "wh0isit"), "refused the login")
	failed("a database that is not there", l.secret(), "does not exist", "DATABASES=nowhere")
	failed("a catalogue that is not there", l.secret("dbname", "nowhere"), "does not exist", "DATABASES=x*")
	failed("TLS refused", l.secret(), "refused TLS", "DB_TLS=verify-full")
	failed("nobody there", l.secret(), "refused", "DB_PORT=1")
	failed("no such host", l.secret("host", "nowhere.invalid"), "no connection")
	failed("SQL Server, nobody there", l.secret("engine", "sqlserver"), "no connection", "DB_PORT=1")
	failed("SQL Server, something else there", l.secret("engine", "sqlserver"), "connect")

	between, err := relay.New(fmt.Sprintf("%s:%d", stage.Postgres.Host, stage.Postgres.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer between.Close()
	for _, way := range []relay.Way{relay.ToServer, relay.ToClient} {
		for n := 0; n < 300; n += 50 { // all through the log-in
			between.CutAfter(way, n)
			f := start(t, "SECRET_ID="+l.put(l.secret("host", "127.0.0.1", "port", between.Port())), "DATABASES="+l.name, "AWS_LAMBDA_LOG_LEVEL=DEBUG")
			reply, lines := f.invoke(t, `{"action":"dry-run"}`) // the next one goes through
			shown(t, fmt.Sprintf("a log-in cut %s at byte %d", way, n), lines+string(reply.Payload), "does not serve yet")
			f.Stop()
		}
	}

	// A server's own error text may quote these.
	asIs := func(s string) string { return s }
	for _, c := range []struct {
		state, path string
		form        func(string) string
	}{
		{"P0001", "as it is", asIs},
		{"P0001", "in a query", url.QueryEscape},
		{"P0001", "in a path", url.PathEscape},
		{"P0001", "in a URL", func(s string) string { return url.UserPassword("u", s).String() }},
		{"P0001", "in quotes", func(s string) string { return fmt.Sprintf("%q", s) }},
		{"P0001", "in a string of SQL", literal},
		{"P0001", "by quote_literal", func(s string) string { return "E" + literal(strings.ReplaceAll(s, `\`, `\\`)) }},
		{"P0001", "in a connection string", func(s string) string { return "'" + strings.NewReplacer(`'`, `\'`, `\`, `\\`).Replace(s) + "'" }},
		{"P0001", "in capitals", strings.ToUpper},
		{"42501", "as it is", asIs}, // a missing right
		{"25006", "as it is", asIs}, // a reader
		{"23503", "as it is", asIs}, // a foreign key
		{"57P01", "as it is", asIs}, // the end of the session: tried again, till time is over
		{"40001", "as it is", asIs}, // a conflict: tried again, till time is over
	} {
		message := literal(fmt.Sprintf("user %s, %q, password %s, token %s %s", l.role, l.role, c.form(secretPassword),
			secretToken, strings.ReplaceAll(strings.ToUpper(secretToken), "-", "")))
		l.exec(t, `
CREATE OR REPLACE FUNCTION dbo.tell() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN RAISE EXCEPTION USING ERRCODE = '`+c.state+`', MESSAGE = `+message+`, DETAIL = `+message+`, HINT = `+message+`; END $body$;
CREATE OR REPLACE TRIGGER tell BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION dbo.tell()`)
		path := "an error " + c.state + " that quotes " + c.path
		if c.state != "57P01" && c.state != "40001" {
			failed(path, l.secret(), "SQLSTATE "+c.state)
			continue
		}
		f := start(t, "SECRET_ID="+l.put(l.secret()), "DATABASES="+l.name, "AWS_LAMBDA_LOG_LEVEL=DEBUG", "STOP_BEFORE=1s")
		reply, lines, err := f.Invoke(t.Context(), `{}`, 2500*time.Millisecond)
		if err != nil {
			t.Error(err)
		}
		shown(t, path, lines+string(reply.Payload), "batch")
	}
}

func (l leaks) put(secretText string) string {
	id := fmt.Sprintf("leaks/%d", created.Add(1))
	stage.Secrets.Put(id, secretText)
	return id
}

func TestNoFaultOfConfigurationEventOrServiceShowsASecret(t *testing.T) {
	t.Parallel()
	l := newLeaks(t)
	var wrong []string
	for _, name := range []string{
		"DATABASES", "AWS_RETRY_MODE", "AWS_ENDPOINT_URL_SECRETS_MANAGER", "DB_ENGINE", "DB_HOST", "DB_PORT", "DB_TLS", "DB_CA_BUNDLE", "GRACE_PERIOD", "BATCH_SIZE",
		"PARALLEL_DATABASES", "PAUSE", "MAX_ROWS", "LOCK_TIMEOUT", "STOP_BEFORE", "METRICS_NAMESPACE",
	} {
		wrong = append(wrong, name+"=postgres://wh0isit:s3cr3tc0re@db.example/x y")
	}
	l.invoke(t, "settings", l.secret(), `{}`, "ConfigurationError", "GRACE_PERIOD", wrong...)
	l.invoke(t, "settings of AWS, and others", l.secret(), `{}`, "ConfigurationError", "PAUSE must be a duration such as 30s or 24h, from 0s to 87600h; AWS_MAX_ATTEMPTS can't be used", "AWS_MAX_ATTEMPTS=s3cr3tc0re", "PAUSE=s3cr3tc0re")
	l.invoke(t, "a profile", l.secret(), `{}`, "ConfigurationError", "AWS_PROFILE", "AWS_PROFILE=s3cr3tc0re")
	events := map[string]string{} // to what the error must name
	for _, value := range []string{secretPassword, secretToken, "postgres://wh0isit:s3cr3tc0re@db.example/x"} {
		quoted, _ := json.Marshal(value) // a string
		for _, field := range []string{"action", "databases", "gracePeriod", "maxRows", "batchSize", "maxDuration", "other"} {
			events[fmt.Sprintf(`{"%s":%s}`, field, quoted)] = field
			events[fmt.Sprintf(`{"%s":{"x":%s}}`, field, quoted)] = field
		}
		events[string(quoted)], events["{"+string(quoted)] = "JSON object", "JSON object"
	}
	for _, misplaced := range []string{"postgres://wh0isit:s3cr3tc0re@db.example/x", secretToken, "host=h;password='a s3cr3tc0re'", `PASSWORD "a s3cr3tc0re"`} {
		quoted, _ := json.Marshal(misplaced) // a string
		events[fmt.Sprintf(`{"databases":[%s]}`, quoted)] = "databases"
		events[fmt.Sprintf(`{%s:1}`, quoted)] = "unknown field"
		events[fmt.Sprintf(`{%s:1,%[1]s:1}`, quoted)] = "comes twice"
	}
	f := l.start(t, "AWS_LAMBDA_LOG_LEVEL=DEBUG")
	for event, want := range events {
		reply, lines := f.invoke(t, event)
		expectError(t, reply, "InvalidEvent", want)
		shown(t, event, lines+string(reply.Payload), want)
	}

	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.Close()
	for _, code := range []string{"AccessDeniedException", "DecryptionFailure", "InternalServiceError"} {
		secrets.Fail(code, "password=s3cr3tc0re of postgres://wh0isit:s3cr3tc0re@db.example, "+secretToken)
		l.invoke(t, code, l.secret(), `{}`, "SecretError", code, "AWS_ENDPOINT_URL_SECRETS_MANAGER="+secrets.URL())
	}
}

func TestNoFailureOfTheCommandShowsASecret(t *testing.T) {
	t.Parallel()
	l := newLeaks(t)
	address := func(password string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword(l.role, password), Host: fmt.Sprintf("%s:%d", stage.Postgres.Host, stage.Postgres.Port), Path: "/" + l.name, RawQuery: "sslmode=disable"}
		return u.String()
	}
	l.exec(t, `
CREATE FUNCTION dbo.tell() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN RAISE EXCEPTION USING MESSAGE = `+literal(address(secretPassword)+" "+secretPassword+" "+l.role)+`; END $body$;
CREATE TRIGGER tell BEFORE DELETE ON dbo.clientaccesstokens FOR EACH ROW EXECUTE FUNCTION dbo.tell()`)
	for _, c := range []struct {
		args, url, want string
	}{
		{"purge -v", address(secretPassword), "SQLSTATE P0001"},
		{"purge -json", address(secretPassword), "SQLSTATE P0001"},
		{"purge -metrics", address(secretPassword), "SQLSTATE P0001"},
		{"purge -v", address(secretPassword + "x"), "refused the login"},
		{"check -v -json", strings.Replace(address(secretPassword), "sslmode=disable", "", 1), "TLS"},
		{"check -v", strings.Replace(address(secretPassword), l.name, "nowhere", 1), "exist"},
		{"check", "postgres://" + l.role + ":" + secretPassword + "@db.example/x", "DATABASE_URL"},
		{"check", "host=db.example password=s3cr3tc0re", "DATABASE_URL"},
		{"check", "mysql://wh0isit:s3cr3tc0re@db.example/x", "DATABASE_URL"},
		{"check", "postgres://wh0isit:s3cr3tc0re@db.example:s3cr3tc0re/x", "DATABASE_URL"},
		{"check", address(secretPassword) + "&host=s3cr3tc0re", "DATABASE_URL"},
		{"check", address(secretPassword) + "&sslpassword=s3cr3tc0re", "DATABASE_URL"},
		{"check postgres://wh0isit:s3cr3tc0re@db.example/x", "", "one word too many"},
		{"postgres://wh0isit:s3cr3t/c0re:s3cr3tc0re@db.example/x", "", "what to do"},
		{"purge -password=s3cr3tc0re", "", "-password"},
		{"purge -password s3cr3tc0re", "", "-password"},
		{"purge -max-rows postgres://wh0isit:s3cr3tc0re@db.example/x", "", "max-rows"},
		{"purge -grace-period password=s3cr3tc0re", "", "grace-period"},
	} {
		command := exec.Command(stage.Binary, strings.Fields(c.args)...)
		command.Env = []string{"DATABASE_URL=" + c.url}
		var out bytes.Buffer
		command.Stdout, command.Stderr = &out, &out
		if err := command.Run(); err == nil {
			t.Errorf("%s succeeded", c.args)
		}
		shown(t, c.args, out.String(), c.want)
	}
}
