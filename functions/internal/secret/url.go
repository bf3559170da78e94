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
// connection string as Ed-Fi keeps it. Errors quote no value.
func ParseAddress(text string) (login Login, err error) {
	text = withoutBOM(text)
	switch {
	case scheme.MatchString(text):
		login, err = parseURL(text)
	case strings.Contains(text, "="):
		login, err = parseConnectionString(text, nil)
	default:
		err = errors.New("it must be a URL, postgres://user:password@host:port/database, or a connection string of Ed-Fi")
	}
	if err == nil {
		err = login.complete()
	}
	if err != nil {
		return Login{}, fmt.Errorf("can't be used: %w", err)
	}
	return login, nil
}

// parseURL refuses what it would misread: with a password that is not encoded, a part
// of it would be taken for the host, looked up and shown.
func parseURL(text string) (login Login, err error) {
	u, err := url.Parse(text)
	if err != nil || strings.Count(text, "@") != 1 || u.User == nil || u.Hostname() == "" || strings.Contains(text, "#") {
		return login, errors.New("it must be a URL with user, password and host, postgres://user:password@host:port/database: " + encode)
	}
	if strings.ContainsAny(strings.TrimPrefix(u.EscapedPath(), "/"), "/:") {
		return login, errors.New("it must name one database behind the host, and nothing else: " + encode)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return login, errors.New("it has a query that can't be read, behind the question mark: " + encode)
	}
	known, err := parseScheme(u, query, &login)
	if err != nil {
		return login, err
	}
	// An unknown parameter could name another host.
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) > 1 {
			return login, fmt.Errorf("it may have no other parameters than %s, each once: %s", strings.Join(known, " and "), encode)
		}
	}
	if port := u.Port(); port != "" {
		if login.Port, err = parsePort(port); err != nil {
			return login, err
		}
	}
	password, _ := u.User.Password()
	login.Host = u.Hostname()
	login.Username, login.Password = redact.NewSecret(u.User.Username()), redact.NewSecret(password)
	return login, nil
}

// An instance's port is for a server's browser to tell, which is not asked: it tells it to
// anybody, unencrypted.
const instance = "it names an instance of SQL Server; give the host alone and the instance's port instead"

// parseScheme reads engine, database and encryption, which each scheme has in a way of
// its own. It returns the parameters that the scheme may have.
func parseScheme(u *url.URL, query url.Values, login *Login) (known []string, err error) {
	switch u.Scheme {
	case "postgres", "postgresql":
		login.Engine, login.Database = "postgres", strings.TrimPrefix(u.Path, "/")
		login.TLS = asked(query.Get("sslmode"), Disable)
		return []string{"sslmode"}, nil
	case "sqlserver":
		if strings.Trim(u.Path, "/") != "" || query.Has("instance") || query.Has("instanceName") {
			return nil, errors.New(instance + ", and the database as ?database=")
		}
		login.Engine, login.Database = "sqlserver", query.Get("database")
		login.TLS = asked(query.Get("encrypt"), Disable, Strict)
		return []string{"database", "encrypt"}, nil
	default:
		return nil, errors.New("it must begin with postgres:// or sqlserver://")
	}
}

// asked returns which of the words a value is, in any letter case; "" is none of them.
func asked(value string, words ...string) string {
	for _, word := range words {
		if strings.EqualFold(value, word) {
			return word
		}
	}
	return ""
}
