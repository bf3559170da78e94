// Package redact takes secrets out of text that others wrote: the error
// messages of a database may quote a row, and the primary key of a token row
// is the bearer token itself.
//
//	redact.go  what is taken out of a text, and how long one may be
//	frames.go  what a secret stands in: connection strings, URLs, headers, flags
//	forms.go   the forms of a secret that is known
//
// Text of our own needs none of it: it quotes others by [Quote] and by [Text].
package redact

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Mark replaces what was taken out.
const Mark = "[redacted]"

const (
	// mostText is how long a text of others may be in a message of ours, in bytes.
	mostText = 2000
	// mostFrames is how much of a text is looked through for frames.
	mostFrames = 8 << 10
	// mostQuote is how long a word of others may be.
	mostQuote = 100
)

// Text returns s without tokens, without the secrets of connection strings, URLs,
// headers and commands, and without the given secrets, in whatever form they are
// there. A long text is cut.
func Text(s string, secrets ...string) string {
	for _, secret := range secrets {
		s = without(s, secret, isShort(secret))
	}
	if len(s) <= mostFrames {
		return Cut(withoutFrames(s), mostText)
	}
	// A secret may be cut in two where the rest is left out, so the end of what is
	// looked through is never shown.
	if shown := withoutFrames(s[:mostFrames]); len(shown) > mostText {
		return Cut(shown+s[mostFrames:], mostText)
	}
	return Mark
}

// Login returns s as Text does, without the password, and without the user's
// name where it is a word of its own.
func Login(s string, user, password Secret) string {
	name, word := user.Reveal(), password.Reveal()
	if name != "" && word != "" {
		s = withoutBase64(s, name+":"+word, true) // as HTTP has it
	}
	s = without(s, word, isShort(word))
	s = withoutLiteral(s, name, true)
	return Text(s)
}

// Quote returns a word of others in quotes, without its secrets, with control
// characters escaped, and cut where it is long.
func Quote(word string) string { return strconv.Quote(Cut(Text(word), mostQuote)) }

// Cut returns s in at most so many bytes, with a word on what is missing.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	rest := fmt.Sprintf("... (%d bytes more)", len(s))
	end := max(0, most-len(rest))
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + fmt.Sprintf("... (%d bytes more)", len(s)-end)
}

// replaced builds a text anew where parts of it are taken out.
type replaced struct {
	b    strings.Builder
	done int // bytes of the text that are in b, or taken out
}

// takeOut puts the mark in place of s[from:to].
func (r *replaced) takeOut(s string, from, to int) {
	r.b.WriteString(s[r.done:from])
	r.b.WriteString(Mark)
	r.done = to
}

// text returns what is left of s.
func (r *replaced) text(s string) string {
	if r.done == 0 {
		return s
	}
	return r.b.String() + s[r.done:]
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
