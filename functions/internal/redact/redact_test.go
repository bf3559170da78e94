package redact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

func TestTextTakesSecretsOut(t *testing.T) {
	const token = "6F9619FF-8B86-D011-B42D-00CF4FC964FF"
	for _, in := range []string{
		"cannot delete " + token,
		"cannot delete " + strings.ReplaceAll(token, "-", ""),
		"cannot delete {" + strings.ToLower(token) + "}",
		"connect postgres://joe:hunter2@db:5432/x",
		"connect host=db password=hunter2 dbname=x",
		"connect host=db;Pwd = 'hunter2';",
		`connect {"password": "hunter2"}`,
		`connect password='a \' hunter2' host=db`,
		`connect "password=\"a hunter2\""`,
		`ALTER ROLE joe PASSWORD 'a '' hunter2'`,
		`ALTER LOGIN joe WITH PASSWORD = N'a "hunter2'`,
		`ALTER ROLE joe PASSWORD 'a "hunter2`,
		"the server says s3cr=t;x is wrong",
	} {
		out := Text(in, "s3cr=t;x", "")
		if !strings.Contains(out, Mark) {
			t.Errorf("%q: nothing taken out", in)
		}
		for _, leak := range []string{"hunter2", "s3cr", "6F9619FF", "6f9619ff", "964FF"} {
			if strings.Contains(out, leak) {
				t.Errorf("%q leaks %q: %q", in, leak, out)
			}
		}
	}
}

func TestTextKnowsASecretInEveryForm(t *testing.T) {
	const secret = `a/?#@%"'\;= é hunter2&`
	inJSON, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	for form, in := range map[string]string{
		"as it is":               secret,
		"in capitals":            strings.ToUpper(secret),
		"in a query":             url.QueryEscape(secret),
		"in a path":              strings.ToLower(url.PathEscape(secret)),
		"in Go":                  strconv.Quote(secret),
		"in ASCII":               strconv.QuoteToASCII(secret),
		"in JSON":                string(inJSON),
		"in JSON in JSON":        strconv.Quote(string(inJSON)),
		"in a string of SQL":     `'` + strings.ReplaceAll(secret, `'`, `''`) + `'`,
		"in a name of SQL":       `"` + strings.ReplaceAll(secret, `"`, `""`) + `"`,
		"by quote_literal":       `E'` + strings.NewReplacer(`'`, `''`, `\`, `\\`).Replace(secret) + `'`,
		"in a connection string": `pass '` + strings.NewReplacer(`'`, `\'`, `\`, `\\`).Replace(secret) + `'`,
	} {
		if out := Text("<"+in+">", secret); strings.Contains(strings.ToLower(out), "hunter2") || !strings.HasPrefix(out, "<") || !strings.HasSuffix(out, ">") {
			t.Errorf("%s: %s gives %s", form, in, out)
		}
	}
}

func TestTextLeavesTheRestAlone(t *testing.T) {
	const in = `permission denied for table clientaccesstokens (SQLSTATE 42501) at 2026-11-23T14:00:00Z, user "purge": check user name and password in the secret`
	if out := Text(in, ""); out != in {
		t.Errorf("got %q", out)
	}
}

func TestSecretPrintsAsRedactedUnderEveryVerb(t *testing.T) {
	const value = "hunter2"
	s := NewSecret(value)
	type outer struct {
		Public  Secret
		private Secret
		pointer *Secret
	}
	o := outer{s, s, &s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%T", "%p", "%b", "%e"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+"\n", s, o, []any{&o, s})
	}
	if err := json.NewEncoder(&out).Encode(map[string]any{"s": s, "o": o}); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "s", s, "o", o)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "s", s, "o", o)
	for _, leak := range []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value)} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("leaks %q:\n%s", leak, out.String())
		}
	}
	if s.Reveal() != value || (Secret{}).Reveal() != "" {
		t.Error("Reveal does not return the secret")
	}
}

func TestLoginTakesOutTheUserWhereItIsAWord(t *testing.T) {
	user, password := NewSecret("edfi"), NewSecret(`p/w"@`)
	for in, want := range map[string]string{
		`role "edfi" of edfi_admin`:        `role "[redacted]" of edfi_admin`,
		`edfi edfi, dba.edfi`:              `[redacted] [redacted], dba.[redacted]`,
		`url p%2Fw%22@, query p%2Fw%22%40`: `url [redacted], query [redacted]`,
		`quoted "p/w\"@"`:                  `quoted "[redacted]"`,
		`capitals EDFI, P/W"@`:             `capitals [redacted], [redacted]`,
	} {
		if out := Login(in, user, password); out != want {
			t.Errorf("%s: %s, want %s", in, out, want)
		}
	}
}
