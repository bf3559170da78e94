package secret

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"edfi-token-purge/functions/internal/redact"
)

// encode is what to do about a URL that can be read in more than one way.
const encode = "percent-encode any of / ? # @ % and blanks in user or password"

var scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

// ParseAddress reads a login from a URL such as
// postgres://user:password@host:5432/EdFi_Admin?sslmode=disable or
// sqlserver://user:password@host:1433?database=EdFi_Admin&encrypt=disable, or from a
// connection string as Ed-Fi keeps it. It also returns whether that asks for no TLS at
// all. Verified TLS satisfies every other value of sslmode and encrypt. Errors quote
// no value.
func ParseAddress(text string) (login Login, plaintext bool, err error) {
	text = withoutBOM(text)
	switch {
	case scheme.MatchString(text):
		login, plaintext, err = parseURL(text)
	case strings.Contains(text, "="):
		login, plaintext, err = parseConnectionString(text, nil)
	default:
		err = errors.New("it must be a URL, postgres://user:password@host:port/database, or a connection string of Ed-Fi")
	}
	if err == nil {
		err = login.complete()
	}
	if err != nil {
		return Login{}, false, fmt.Errorf("can't be used: %w", err)
	}
	return login, plaintext, nil
}

// parseURL refuses what it would misread: with a password that is not encoded, a part
// of it would be taken for the host, looked up and shown.
func parseURL(text string) (login Login, plaintext bool, err error) {
	u, err := url.Parse(text)
	if err != nil || strings.Count(text, "@") != 1 || u.User == nil || u.Host == "" || strings.Contains(text, "#") {
		return login, false, errors.New("it must be a URL with user, password and host, postgres://user:password@host:port/database: " + encode)
	}
	if strings.ContainsAny(strings.TrimPrefix(u.EscapedPath(), "/"), "/:") {
		return login, false, errors.New("it must name one database behind the host, and nothing else: " + encode)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return login, false, errors.New("it has a query that can't be read, behind the question mark: " + encode)
	}
	known, plaintext, err := parseScheme(u, query, &login)
	if err != nil {
		return login, false, err
	}
	// An unknown parameter could name another host.
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) > 1 {
			return login, false, fmt.Errorf("it may have no other parameters than %s, each once: %s", strings.Join(known, " and "), encode)
		}
	}
	if port := u.Port(); port != "" {
		if login.Port, err = parsePort(port); err != nil {
			return login, false, err
		}
	}
	password, _ := u.User.Password()
	login.Host = u.Hostname()
	login.Username, login.Password = redact.NewSecret(u.User.Username()), redact.NewSecret(password)
	return login, plaintext, nil
}

// parseScheme reads engine and database, which each scheme has in a way of its own,
// and whether there is no TLS. It returns the parameters that the scheme may have.
func parseScheme(u *url.URL, query url.Values, login *Login) (known []string, plaintext bool, err error) {
	switch u.Scheme {
	case "postgres", "postgresql":
		login.Engine, login.Database = "postgres", strings.TrimPrefix(u.Path, "/")
		return []string{"sslmode"}, query.Get("sslmode") == "disable", nil
	case "sqlserver":
		if strings.Trim(u.Path, "/") != "" {
			return nil, false, errors.New("it names an instance; give its port instead, and the database as ?database=")
		}
		login.Engine, login.Database = "sqlserver", query.Get("database")
		return []string{"database", "encrypt"}, query.Get("encrypt") == "disable", nil
	default:
		return nil, false, errors.New("it must begin with postgres:// or sqlserver://")
	}
}
