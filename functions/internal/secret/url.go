package secret

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"edfi-token-purge/functions/internal/redact"
)

// ParseURL reads a login from a URL such as
// postgres://user:password@host:5432/EdFi_Admin?sslmode=disable or
// sqlserver://user:password@host:1433?database=EdFi_Admin&encrypt=disable. It
// also returns whether the URL asks for no TLS at all. Verified TLS satisfies every
// other value of sslmode and encrypt. Errors quote no value.
func ParseURL(text string) (login Login, plaintext bool, err error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" { // the error of net/url quotes what it read
		return login, false, errors.New("must be a URL: postgres://user:password@host:port/database, with any of /?#@% in user or password percent-encoded")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return login, false, errors.New("has a query that can't be read, behind the question mark")
	}
	known, plaintext, err := parseScheme(u, query, &login)
	if err != nil {
		return login, false, err
	}
	// An unknown parameter could name another host.
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) > 1 {
			return login, false, fmt.Errorf("may have no other parameters than %s, each once", strings.Join(known, " and "))
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
	if u.User.Username() == "" || password == "" || login.Host == "" {
		return login, false, errors.New("must hold user, password and host")
	}
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
			return nil, false, errors.New("names an instance; give its port instead, and the database as ?database=")
		}
		login.Engine, login.Database = "sqlserver", query.Get("database")
		return []string{"database", "encrypt"}, query.Get("encrypt") == "disable", nil
	default:
		return nil, false, errors.New("must begin with postgres:// or sqlserver://")
	}
}
