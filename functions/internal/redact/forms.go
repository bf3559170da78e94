package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// shortSecret is the length below which a secret is taken out only where it is a
// word of its own: one of three letters is a part of too many words.
const shortSecret = 8

func isShort(secret string) bool { return len(secret) < shortSecret }

// without returns s without the secret, as it is and encoded. word takes it out only
// where it is a word of its own.
func without(s, secret string, word bool) string {
	if secret == "" {
		return s
	}
	s = withoutLiteral(s, secret, word)
	if len(s) < len(secret) { // no encoding is shorter
		return s
	}
	var wide []byte // as SQL Server and Windows keep text
	for _, unit := range utf16.Encode([]rune(secret)) {
		wide = append(wide, byte(unit), byte(unit>>8))
	}
	for _, form := range []string{secret, string(wide)} {
		s = withoutNumbers(withoutHex(withoutBase64(s, form, word), []byte(form), word), form)
	}
	return s
}

// withoutLiteral takes out secret in any letter case, and with each of its characters
// as it is, doubled or escaped, for a string of SQL, Go, JSON or a shell, or encoded for a
// URL or for XML.
func withoutLiteral(s, secret string, word bool) string {
	if secret == "" {
		return s
	}
	first, _ := utf8.DecodeRuneInString(secret)
	last, _ := utf8.DecodeLastRuneInString(secret)
	var r replaced
	for i := 0; i < len(s); {
		end := match(s, i, secret)
		switch {
		case end < 0, word && (isWord(first) && inWord(s[:i]) || isWord(last) && continues(s[end:])):
			_, width := utf8.DecodeRuneInString(s[i:])
			i += width
		default:
			r.takeOut(s, i, end)
			i = end
		}
	}
	return r.text(s)
}

// places are where a secret that is being matched may have ended so far. A character
// has more than one form, and one form may be the beginning of another.
type places struct {
	at [16]int
	n  int
}

func (p *places) add(end int) {
	if end >= 0 && p.n < len(p.at) && !slices.Contains(p.at[:p.n], end) {
		p.at[p.n] = end
		p.n++
	}
}

// match returns where secret ends that begins at s[i:], or -1.
func match(s string, i int, secret string) int {
	ends := places{n: 1}
	ends.at[0] = i
	for _, r := range secret {
		var next places
		for _, at := range ends.at[:ends.n] {
			next.addForms(s, at, r)
		}
		if ends = next; ends.n == 0 {
			return -1
		}
	}
	return slices.Max(ends.at[:ends.n])
}

// addForms adds where the character r ends that begins at s[at:], for each of its forms.
func (p *places) addForms(s string, at int, r rune) {
	p.add(percent(s, at, r, false))
	p.add(percent(s, at, r, true))
	p.add(entity(s, at, r))
	slashes := at + slashesAt(s, at)
	if slashes > at {
		for _, end := range escaped(s, slashes, r) {
			p.add(end)
		}
		p.add(escapedBytes(s, at, r))
	}
	switch {
	case r == '\\': // one, or as many as it takes in a string in a string
		for end := at + 1; end <= slashes; end++ {
			p.add(end)
		}
	case isWord(r): // nothing escapes these with a slash alone
		p.add(asItIs(s, at, r))
	default:
		for _, form := range otherForms[r] {
			if strings.HasPrefix(s[at:], form) {
				p.add(at + len(form))
			}
		}
		if end := asItIs(s, slashes, r); end > 0 {
			p.add(end)
			p.add(asItIs(s, end, r)) // doubled
		}
	}
}

// mostSlashes is how many an escape may have: a string in a string has twice as many.
const mostSlashes = 64

// slashesAt returns how many slashes there are at s[at:], as far as they matter.
func slashesAt(s string, at int) int {
	rest := s[at:min(len(s), at+mostSlashes)]
	return len(rest) - len(strings.TrimLeft(rest, `\`))
}

// asItIs returns where r ends that stands at s[at:] in either letter case, or -1.
func asItIs(s string, at int, r rune) int {
	if have, width := utf8.DecodeRuneInString(s[at:]); width > 0 && equalFold(have, r) {
		return at + width
	}
	return -1
}

// otherForms are how a query has a blank, a shell a quote in quotes, and an editor a blank.
var otherForms = map[rune][]string{' ': {"+", "%2B", "%2b", "\u00a0", "&nbsp;"}, '\'': {`'\''`, `'"'"'`}}

// percent returns where r ends that is percent-encoded at s[p:], or -1; again tells that
// the percent signs were encoded too, any number of times.
func percent(s string, p int, r rune, again bool) int {
	var buffer [utf8.UTFMax]byte
	for _, b := range buffer[:utf8.EncodeRune(buffer[:], r)] {
		if p >= len(s) || s[p] != '%' {
			return -1
		}
		for p++; again && strings.HasPrefix(s[p:], "25") && p+4 <= len(s) && hexValue(s[p+2:p+4]) >= 0; {
			p += 2
		}
		if p+2 > len(s) || hexValue(s[p:p+2]) != int(b) {
			return -1
		}
		p += 2
	}
	return p
}

// entities are those of XML that have a name.
var entities = map[string]rune{"amp": '&', "lt": '<', "gt": '>', "quot": '"', "apos": '\''}

// entity returns where r ends that is an entity of XML at s[at:], or -1.
func entity(s string, at int, r rune) int {
	end := strings.IndexByte(s[at:min(len(s), at+12)], ';')
	if end < 2 || s[at] != '&' {
		return -1
	}
	value, known := entities[s[at+1:at+end]]
	if digits, is := strings.CutPrefix(s[at+1:at+end], "#"); is {
		base := 10
		if digits != "" && digits[0]|0x20 == 'x' {
			digits, base = digits[1:], 16
		}
		number, err := strconv.ParseUint(digits, base, 21)
		value, known = rune(number), err == nil
	}
	if !known || !equalFold(value, r) {
		return -1
	}
	return at + end + 1
}

// escapedBytes returns where r ends of which s[at:] has each byte as an escape, \303 or
// \xc3, or -1.
func escapedBytes(s string, at int, r rune) int {
	var buffer [utf8.UTFMax]byte
	for _, b := range buffer[:utf8.EncodeRune(buffer[:], r)] {
		slashes := slashesAt(s, at)
		if at += slashes; slashes == 0 || at+3 > len(s) {
			return -1
		}
		octal, err := strconv.ParseUint(s[at:at+3], 8, 8)
		if (err != nil || byte(octal) != b) && (s[at] != 'x' || hexValue(s[at+1:at+3]) != int(b)) {
			return -1
		}
		at += 3
	}
	return at
}

// short escapes of Go and JSON, behind the slash.
var escapes = map[rune]byte{'\a': 'a', '\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't', '\v': 'v'}

// escaped returns where r ends that is written as an escape whose slashes end at p:
// \n, \x0a, \u000a, \U0000000a, or two of UTF-16; -1 for each that it is not.
func escaped(s string, p int, r rune) (ends [5]int) {
	number := func(at int, letter byte, digits int, value rune) int {
		end := at + 1 + digits
		if end > len(s) || s[at] != letter || hexValue(s[at+1:end]) != int(value) {
			return -1
		}
		return end
	}
	ends = [5]int{-1, number(p, 'x', 2, r), number(p, 'u', 4, r), number(p, 'U', 8, r), -1}
	if letter := escapes[r]; letter != 0 && p < len(s) && s[p] == letter {
		ends[0] = p + 1
	}
	if high, low := utf16.EncodeRune(r); high != unicode.ReplacementChar {
		if end := number(p, 'u', 4, high); end > 0 {
			end += slashesAt(s, end)
			ends[4] = number(end, 'u', 4, low)
		}
	}
	return ends
}

// hexValue returns the number that the hexadecimal digits are, or -1.
func hexValue(digits string) int {
	value := 0
	for _, c := range []byte(digits) {
		digit := strings.IndexByte("0123456789abcdef", c|0x20)
		if digit < 0 || c < '0' {
			return -1
		}
		value = value<<4 | digit
	}
	return value
}

func equalFold(a, b rune) bool {
	if a == b {
		return true
	}
	for r := unicode.SimpleFold(a); r != a; r = unicode.SimpleFold(r) {
		if r == b {
			return true
		}
	}
	return false
}

func isWord(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) }

// An escape ends like a word and is none.
var endsInEscape = regexp.MustCompile(`(?:\\(?:[a-z]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})|%[0-9A-Fa-f]{2})$`)

// inWord tells whether what follows before would go on with a word.
func inWord(before string) bool {
	last, _ := utf8.DecodeLastRuneInString(before)
	return isWord(last) && !endsInEscape.MatchString(before[max(0, len(before)-6):])
}

// continues tells whether a word goes on in after.
func continues(after string) bool {
	first, width := utf8.DecodeRuneInString(after)
	return width > 0 && isWord(first)
}

// withoutBase64 takes out the secret in base64, of either alphabet, also where it is
// in the middle of what was encoded: then three bytes of four characters may begin
// before it, with none, one or two bytes of others.
func withoutBase64(s, secret string, word bool) string {
	for before := range 3 {
		bits := 8 * (before + len(secret))
		for _, alphabet := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			code := alphabet.EncodeToString(append(make([]byte, before), secret...))
			if word && before == 0 {
				s = withoutCode(s, code, true)
			}
			// The characters that no other byte has a part in; so few may be of a word.
			if code = code[(8*before+5)/6 : bits/6]; !word || len(code) >= fewInBase64 {
				s = withoutCode(s, code, false)
			}
		}
	}
	return s
}

const fewInBase64 = 6

// withoutCode takes out code in base64, as it is and as URLs have it.
func withoutCode(s, code string, word bool) string {
	s = withoutRuns(s, code, word)
	if strings.ContainsAny(code, "+/") {
		s = withoutRuns(s, strings.NewReplacer("+", "%2B", "/", "%2F").Replace(code), word)
		s = withoutRuns(s, strings.NewReplacer("+", "%2b", "/", "%2f").Replace(code), word)
	}
	return s
}

// withoutRuns takes out code with the letters and digits around it, which may hold a
// part of the secret as well; or, as a word, only where nothing of base64 is beside it.
func withoutRuns(s, code string, word bool) string {
	var r replaced
	for i := 0; code != ""; {
		at := strings.Index(s[i:], code)
		if at < 0 {
			break
		}
		from, to := i+at, i+at+len(code)
		i = to
		if word && (from > 0 && isBase64(s[from-1]) || to < len(s) && isBase64(s[to])) {
			continue
		}
		from = max(r.done, len(strings.TrimRightFunc(s[:from], isAlnum)))
		to = len(s) - len(strings.TrimLeftFunc(s[to:], isAlnum))
		to = len(s) - len(strings.TrimLeft(s[to:], "="))
		r.takeOut(s, from, to)
		i = to
	}
	return r.text(s)
}

func isAlnum(c rune) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' && c < utf8.RuneSelf
}

func isBase64(c byte) bool { return isAlnum(rune(c)) || strings.IndexByte("+/-_", c) >= 0 }

// withoutHex takes out the secret in hexadecimal digits.
func withoutHex(s string, secret []byte, word bool) string {
	if len(secret) == 0 || len(s) < 2*len(secret) {
		return s
	}
	isDigit := func(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' }
	lower := []byte(s) // each byte at its place, other than strings.ToLower has it
	for i, c := range lower {
		if isDigit(c) {
			lower[i] = c | 0x20
		}
	}
	code := []byte(hex.EncodeToString(secret))
	var r replaced
	for i := 0; ; {
		at := bytes.Index(lower[i:], code)
		if at < 0 {
			return r.text(s)
		}
		from, to := i+at, i+at+len(code)
		i = to
		if word && (from > 0 && isDigit(s[from-1]) || to < len(s) && isDigit(s[to])) {
			continue
		}
		r.takeOut(s, from, to)
	}
}

// fewNumbers is how few numbers in a row say nothing.
const fewNumbers = 4

// withoutNumbers takes out the bytes of the secret as a list of numbers: hexadecimal, as
// dumps and Go's % x have them, or decimal, as Go prints bytes.
func withoutNumbers(s, secret string) string {
	if len(secret) < fewNumbers || len(s) < 2*len(secret) {
		return s
	}
	var r replaced
	for i := 0; i < len(s); {
		end := max(numbers(s, i, secret, 16, 2), numbers(s, i, secret, 10, 3))
		if end < 0 {
			i++
			continue
		}
		r.takeOut(s, i, end)
		i = end
	}
	return r.text(s)
}

// numbers returns where the bytes of the secret end that s[i:] has in this base, with so
// many digits at most and something between them, or -1.
func numbers(s string, i int, secret string, base, most int) int {
	for n, b := range []byte(secret) {
		if n > 0 {
			gap := len(s) - len(strings.TrimLeft(s[i:], " ,:;-|_\t\r\n")) - i
			i += gap
			if base == 16 && (strings.HasPrefix(s[i:], "0x") || strings.HasPrefix(s[i:], `\x`)) {
				i, gap = i+2, gap+2
			}
			if gap == 0 {
				return -1
			}
		}
		digits := 0
		for digits < most && i+digits < len(s) && strings.IndexByte("0123456789abcdef"[:base], s[i+digits]|0x20) >= 0 {
			digits++
		}
		value, err := strconv.ParseUint(s[i:i+digits], base, 8)
		if err != nil || byte(value) != b {
			return -1
		}
		i += digits
	}
	return i
}
