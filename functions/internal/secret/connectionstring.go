package secret

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"strings"
)

// keywords are the keywords of Npgsql and SqlClient that make a login, in lower
// case and without spaces. All others are for the API and are ignored here.
var keywords = map[string]string{
	"host": "host", "server": "host", "datasource": "host", "address": "host", "addr": "host", "networkaddress": "host",
	"port":     "port",
	"database": "database", "initialcatalog": "database", "db": "database",
	"username": "username", "userid": "username", "user": "username", "uid": "username",
	"password": "password", "pwd": "password", "psw": "password",
	"integratedsecurity": "integrated", "trusted_connection": "integrated",
	"sslmode": "sslmode", "encrypt": "encrypt",
	"authentication": "authentication",
	"driver":         "driver", "dsn": "driver", "provider": "driver",
	"instance": "instance", "instancename": "instance", // of drivers for SQL Server
}

// Keywords that only one of the two libraries knows.
var (
	npgsqlOnly    = []string{"host", "port", "username"}
	sqlClientOnly = []string{"datasource", "initialcatalog", "address", "addr", "networkaddress", "integratedsecurity", "trusted_connection"}
)

// parseConnectionString reads what Ed-Fi keeps under ConnectionStrings, such as
// host=...;username=...;password=...;database=EdFi_Admin or
// Server=host,port;Database=...;User Id=...;Password=.... The fields in instead
// replace those in the text. The login may be incomplete. SqlClient has no word for no
// TLS at all: with Encrypt=False it encrypts the login all the same.
func parseConnectionString(text string, instead map[string]string) (login Login, err error) {
	given, err := pairs(text)
	if err != nil {
		return Login{}, err
	}
	values := map[string]string{}
	for keyword, value := range given {
		if field, ok := keywords[keyword]; ok && value != "" {
			if have, twice := values[field]; twice && have != value {
				return Login{}, fmt.Errorf("it gives the %s twice", field)
			}
			values[field] = value
		}
	}
	if err := otherLogin(values); err != nil {
		return Login{}, err
	}
	engine := engineOf(given, values)
	maps.Copy(values, instead)
	if engine == "sqlserver" {
		if err := readServer(values, instead["port"]); err != nil {
			return Login{}, err
		}
	}
	login, err = newLogin(values)
	login.Engine, login.TLS = engine, asked(values["sslmode"], Disable)
	if engine == "sqlserver" {
		login.TLS = asked(values["encrypt"], Strict)
	}
	return login, err
}

// otherLogin returns why the text gives no user and password for the server itself, or
// in a way that would be misread.
func otherLogin(values map[string]string) error {
	on, by := strings.ToLower(values["integrated"]), strings.ToLower(strings.ReplaceAll(values["authentication"], " ", ""))
	switch {
	case on != "" && on != "false" && on != "no":
		return errors.New("it asks for Integrated Security, for which there is no account here: it must hold User Id and Password")
	case by != "" && by != "sqlpassword" && by != "notspecified":
		return errors.New("it asks for another Authentication than SQL Server's own: it must hold the User Id and Password of a login there")
	case values["driver"] != "": // whose braces have another meaning
		return errors.New("it is one of ODBC or OLE DB (Driver, DSN, Provider); give one as Ed-Fi keeps it, with Server, Database, User Id and Password alone")
	}
	return nil
}

// readServer reads host and port from SqlClient's [tcp:]host[\instance][,port]. A port
// that is given instead of that replaces it.
func readServer(values map[string]string, instead string) error {
	host := values["host"]
	if hasTCP(host) {
		host = host[len(tcp):]
	}
	if strings.HasPrefix(strings.TrimPrefix(strings.ToLower(host), "np:"), `\\`) {
		return errors.New("it names a pipe of SQL Server, which leads there from Windows alone; give the host and its port instead: Server=host,port")
	}
	host, port, _ := strings.Cut(host, ",")
	host, name, _ := strings.Cut(host, `\`)
	values["host"] = strings.TrimSpace(host)
	values["port"] = cmp.Or(instead, strings.TrimSpace(port), values["port"])
	if cmp.Or(name, values["instance"]) != "" && values["port"] == "" {
		return errors.New(instance + ": Server=host,port")
	}
	return nil
}

const tcp = "tcp:"

func hasTCP(host string) bool { return len(host) > len(tcp) && strings.EqualFold(host[:len(tcp)], tcp) }

// engineOf returns the engine whose library knows the keywords; "" where both do.
func engineOf(given, values map[string]string) string {
	host := values["host"]
	if values["instance"] != "" {
		return "sqlserver"
	}
	for _, keyword := range npgsqlOnly {
		if _, ok := given[keyword]; ok {
			return "postgres"
		}
	}
	for _, keyword := range sqlClientOnly {
		if _, ok := given[keyword]; ok {
			return "sqlserver"
		}
	}
	if strings.ContainsAny(host, `,\`) || hasTCP(host) {
		return "sqlserver"
	}
	for keyword := range given {
		if keyword == "encrypt" || keyword == "multipleactiveresultsets" || keyword == "applicationintent" {
			return "sqlserver"
		}
	}
	return ""
}

// pairs splits keyword=value;..., where a value may be quoted and then hold any
// character, the quote itself doubled. If a keyword comes twice, the last one holds.
func pairs(text string) (map[string]string, error) {
	all := map[string]string{}
	for rest := text; ; {
		rest = strings.TrimLeft(rest, "; \t\r\n")
		if rest == "" {
			return all, nil
		}
		keyword, after, found := strings.Cut(rest, "=")
		keyword = strings.ToLower(strings.ReplaceAll(strings.TrimSpace(keyword), " ", ""))
		if !found || keyword == "" || strings.Contains(keyword, ";") {
			return nil, errors.New("it is no connection string: a part of it is not keyword=value")
		}
		var value string
		value, rest, found = cutValue(strings.TrimLeft(after, " \t"))
		if !found {
			return nil, errors.New("it is no connection string: a quote is not closed, or something follows it")
		}
		all[keyword] = value
	}
}

// cutValue returns the value at the beginning of text, and what follows it.
func cutValue(text string) (value, rest string, ok bool) {
	if text == "" || text[0] != '"' && text[0] != '\'' {
		value, rest, _ = strings.Cut(text, ";")
		return strings.TrimSpace(value), rest, true
	}
	quote := text[:1]
	var b strings.Builder
	for text = text[1:]; ; {
		part, after, closed := strings.Cut(text, quote)
		if !closed {
			return "", "", false
		}
		b.WriteString(part)
		if strings.HasPrefix(after, quote) {
			b.WriteString(quote)
			text = after[1:]
			continue
		}
		after = strings.TrimLeft(after, " \t")
		if after != "" && after[0] != ';' {
			return "", "", false
		}
		return b.String(), after, true
	}
}
