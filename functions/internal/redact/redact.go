// Package redact takes secrets out of text that others wrote: the error
// messages of a database may quote a row, and the primary key of a token row
// is the bearer token itself.
package redact

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// Mark replaces what was taken out.
const Mark = "[redacted]"

var (
	// A token is a UUID; some code writes it without its hyphens.
	token = regexp.MustCompile(`(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}`)
	// Connection strings: user:password@ in a URL, and password=... in a list; and
	// PASSWORD '...' in a statement. An unclosed quote runs to the end of the text.
	userinfo = regexp.MustCompile(`://\S*@`)
	password = regexp.MustCompile(`(?is)\b(password|passwd|pwd|psw)["']?(?:\s*[=:]\s*(?:` + quoted + `|[^\s;,]+)|\s+` + quoted + `)`)
)

// quoted is a value in quotes. A quote inside it is doubled or has a backslash
// before it.
const quoted = `\\*[a-z]?(?:'(?:[^'\\]|''|\\.)*(?:'|$)|"(?:[^"\\]|""|\\.)*(?:"|$))`

// Text returns s without tokens, without the passwords of connection strings,
// and without the given secrets, in whatever form they are there.
func Text(s string, secrets ...string) string {
	for _, secret := range secrets {
		if secret != "" {
			s = regexp.MustCompile(pattern(secret)).ReplaceAllLiteralString(s, Mark)
		}
	}
	s = token.ReplaceAllString(s, Mark)
	s = userinfo.ReplaceAllString(s, "://"+Mark+"@")
	return password.ReplaceAllString(s, "$1="+Mark)
}

// pattern matches secret in any letter case, and with each of its characters as it
// is, doubled or escaped, for a string of SQL, Go or JSON, or encoded for a URL.
func pattern(secret string) string {
	var b strings.Builder
	b.WriteString(`(?i:`)
	for _, r := range secret {
		c := string(r)
		if url.QueryEscape(c) == c { // it needs no encoding
			b.WriteString(regexp.QuoteMeta(c))
			continue
		}
		inGo := strconv.Quote(c)
		forms := []string{inGo[1 : len(inGo)-1], url.QueryEscape(c), url.PathEscape(c), fmt.Sprintf(`\u%04x`, r)}
		for i, form := range forms {
			forms[i] = regexp.QuoteMeta(form)
		}
		fmt.Fprintf(&b, `\\*(?:(?:%s){1,2}|%s)`, regexp.QuoteMeta(c), strings.Join(forms, "|"))
	}
	b.WriteString(`)`)
	return b.String()
}

// Login returns s as Text does, without the password, and without the user's
// name where it is a word of its own.
func Login(s string, user, password Secret) string {
	s = Text(s, password.Reveal())
	if name := user.Reveal(); name != "" {
		word := regexp.MustCompile(`(^|\W)` + pattern(name) + `(\W|$)`)
		for range 2 { // one pass misses the second of two neighbours
			s = word.ReplaceAllString(s, "${1}"+Mark+"${2}")
		}
	}
	return s
}

// Secret is a string that only Reveal shows: it prints as redacted under every
// verb of fmt, in JSON and in logs. The zero Secret reveals "".
//
// It holds a function, not a string, because fmt reads unexported fields by
// reflection, past any method.
type Secret struct{ reveal func() string }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{func() string { return s }} }

// Reveal returns the secret itself.
func (s Secret) Reveal() string {
	if s.reveal == nil {
		return ""
	}
	return s.reveal()
}

// String returns the mark.
func (Secret) String() string { return Mark }

// GoString returns the mark, for %#v.
func (Secret) GoString() string { return Mark }

// MarshalText returns the mark, for JSON and log/slog.
func (Secret) MarshalText() ([]byte, error) { return []byte(Mark), nil }
