package redact

import (
	"regexp"
	"strings"
	"unicode"
)

// withoutFrames takes out what stands where secrets stand. It knows no secret, so
// where a format leaves room for doubt it takes out more rather than less, but no
// word that no format makes a secret.
func withoutFrames(s string) string {
	s = privateKey.ReplaceAllLiteralString(s, Mark)
	s = withoutNamed(s)
	s = withoutUserInfo(s)
	s = withoutCredentials(s)
	s = withoutSpacedTokens(s)
	for _, form := range tokens {
		s = form.ReplaceAllLiteralString(s, Mark)
	}
	return withoutBareUserInfo(s)
}

// A token is a UUID: in groups of four digits with a hyphen or none, as PostgreSQL
// reads it, percent-encoded or not; the sixteen numbers and words of .NET; the bytes
// of it in base64. Or it is a JSON Web Token.
var tokens = []*regexp.Regexp{
	regexp.MustCompile(`(?i)[0-9a-f]{4}(?:(?:[-_]|%2d)?[0-9a-f]{4}){7}[0-9a-f]*`),
	regexp.MustCompile(`(?i)0x[0-9a-f]{1,8}(?:\s*,\s*\{?\s*0x[0-9a-f]{1,4}){10}`),
	regexp.MustCompile(`[A-Za-z0-9+/_-]{21}[AQgw]==`),
	regexp.MustCompile(`\beyJ[\w-]+\.eyJ[\w-]+\.[\w-]*`),
	regexp.MustCompile(`(?i)\bSCRAM-SHA-\d+\$[^\s"']+`), // as PostgreSQL keeps a password
}

// spacedTokens are UUIDs with blanks, colons and the like between their parts, one for
// each of these: the groups of a UUID, words of four digits, as a dump has them, and single
// bytes.
var spacedTokens = func() (forms []*regexp.Regexp) {
	gaps := []string{`[\s\x{a0}]+`, `\s*[-\x{2010}-\x{2015}\x{2212}]\s*`, `%20`, `%3a`}
	for _, sign := range ":,.;/|_+" {
		gaps = append(gaps, `\s*`+regexp.QuoteMeta(string(sign))+`\s*`)
	}
	for _, gap := range gaps {
		forms = append(forms, regexp.MustCompile(`(?i)[0-9a-f]{8}(?:`+gap+`[0-9a-f]{4}){3}`+gap+`[0-9a-f]{12}|`+
			`[0-9a-f]{4}(?:`+gap+`[0-9a-f]{4}){7,}|(?:0x)?[0-9a-f]{2}(?:`+gap+`(?:0x)?[0-9a-f]{2}){15,}`))
	}
	return append(forms, regexp.MustCompile(`\[\d{1,3}(?:[ ,]+\d{1,3}){15}\]`)) // as Go writes bytes
}()

// An address of IPv6, and a fingerprint, have colons too.
var (
	anAddress = regexp.MustCompile(`(?i)^(?:[23]|f[c-f])[0-9a-f]+(?::[0-9a-f]{4}){7}$`)
	aPrint    = regexp.MustCompile(`^(?:..:){16,}..$`)
)

// withoutSpacedTokens takes out what is a token in parts. A list of numbers is none.
func withoutSpacedTokens(s string) string {
	for _, form := range spacedTokens {
		var r replaced
		for _, at := range form.FindAllStringIndex(s, -1) {
			text := s[at[0]:at[1]]
			bytes := text[0] == '['
			hex := strings.ContainsAny(text, "0123456789") && strings.ContainsAny(strings.ToLower(strings.ReplaceAll(text, "0x", "")), "abcdef")
			whole := !inWord(s[:at[0]]) && !continues(s[at[1]:])
			if bytes || hex && whole && !anAddress.MatchString(text) && !aPrint.MatchString(text) {
				r.takeOut(s, at[0], at[1])
			}
		}
		s = r.text(s)
	}
	return s
}

// privateKey is one in PEM, which may break off.
var privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|$)`)

// ---- URLs

// aHost is what follows an @ that ends the user info of a URL; it is certain where a
// port, a path or a query follows the host.
const aHost = `@(?:[0-9A-Za-z._%-]+|\[[0-9A-Fa-f:.%]+\])`

var (
	aScheme     = regexp.MustCompile(`(?:[A-Za-z][A-Za-z0-9+.-]*:|(?:^|[\s"'=(,;<>]))//`)
	certainHost = regexp.MustCompile(aHost + `(?::\d|/|\?)`)
	anyHost     = regexp.MustCompile(aHost)
	noPort      = regexp.MustCompile(`^[^\[\]]*:[^,:]*[^0-9,:]`)
	// What has no scheme: no blank follows the colon, which would be prose.
	bareUserName = regexp.MustCompile(`(?:^|[\s"'` + "`" + `=(,;<>])([^\s:/@"'` + "`" + `=(,;<>\[\]{}]+):(?:[^\s/:]|:[^:])`)
)

// userOfServer is user@server:password, as Azure has it.
var userOfServer = regexp.MustCompile(`[^\s:/@"'` + "`" + `=(,;<>\[\]{}]+@[0-9A-Za-z.-]+:[^\s/:]+$`)

// isDatabase tells a URL whose user info may hold blanks from an address of the web
// in a sentence that goes on with one of mail.
var isDatabase = regexp.MustCompile(`(?i)^(?:postgres(?:ql)?|sqlserver|mssql|mysql|mariadb|mongodb(?:\+srv)?|rediss?|amqps?|ldaps?|jdbc|odbc)`)

// withoutUserInfo takes out user and password of each URL. They end at the last @ of
// the word; or, where they hold blanks, at the last one of the line that a host follows.
func withoutUserInfo(s string) string {
	var r replaced
	schemes := aScheme.FindAllStringIndex(s, -1)
	for i, scheme := range schemes {
		if scheme[1] < r.done {
			continue
		}
		end := len(s)
		for _, next := range schemes[i+1:] {
			if next[0] > scheme[1] { // else it is the user, and the password begins with slashes
				end = next[0]
				break
			}
		}
		rest, _, _ := strings.Cut(s[scheme[1]:end], "\n")
		if length := userInfo(rest, isDatabase.MatchString(s[scheme[0]:])); length > 0 {
			r.takeOut(s, scheme[1], scheme[1]+length)
		}
	}
	return r.text(s)
}

// userInfo returns how long the user info is at the beginning of rest.
func userInfo(rest string, database bool) int {
	word := rest
	if blank := strings.IndexFunc(rest, unicode.IsSpace); blank >= 0 {
		word = rest[:blank]
	}
	length := max(0, strings.LastIndexByte(word, '@'))
	authority := word
	if i := strings.IndexAny(word, "/?#"); i >= 0 {
		authority = word[:i]
	}
	if !strings.ContainsAny(authority, ":@") && (!database || len(authority) < len(word)) {
		return length
	}
	length = max(length, lastStart(certainHost, rest))
	if length == 0 {
		if at := lastStart(anyHost, rest); at > 0 && strings.Contains(rest[:at], ":") {
			length = at
		}
	}
	if length == 0 && noPort.MatchString(authority) { // it breaks off before its @
		length = len(word)
	}
	return length
}

func lastStart(of *regexp.Regexp, s string) int {
	all := of.FindAllStringIndex(s, -1)
	if all == nil {
		return 0
	}
	return all[len(all)-1][0]
}

// withoutBareUserInfo takes out user:password before @host where no scheme says that
// it is a URL. With blanks in it, only what follows the host says so.
func withoutBareUserInfo(s string) string {
	if !strings.Contains(s, "@") {
		return s
	}
	var b strings.Builder
	for line := range strings.Lines(s) {
		if end := lastStart(certainHost, line); end > 0 {
			start := bareUser(line[:end])
			if start < end {
				line = line[:start] + Mark + line[end:]
			}
		}
		for part := range strings.SplitAfterSeq(line, " ") {
			if end := lastStart(anyHost, part); end > 0 {
				start := bareUser(part[:end])
				if of := userOfServer.FindStringIndex(part[:end]); start == end && of != nil && !strings.HasSuffix(part[:end], Mark) {
					start = of[0]
				}
				if start < end {
					part = part[:start] + Mark + part[end:]
				}
			}
			b.WriteString(part)
		}
	}
	return b.String()
}

// bareUser returns where the user's name begins in text, which ends before an @; its
// end where there is none.
func bareUser(text string) int {
	if strings.HasSuffix(text, Mark) {
		return len(text)
	}
	for _, at := range bareUserName.FindAllStringSubmatchIndex(text, -1) {
		name, rest := text[at[2]:at[3]], text[at[3]+1:]
		clock := strings.Trim(name, "0123456789") == "" && len(rest) > 1 && strings.Trim(rest[:2], "0123456789") == ""
		if !clock && !strings.EqualFold(name, "mailto") && name != "arn" {
			return at[2]
		}
	}
	return len(text)
}

// ---- headers and commands

// What follows Bearer is a secret, but where the sentence is about bearers.
var (
	bearer        = regexp.MustCompile(`(?i)(?:\b|%[0-9a-f]{2})bearer(?:\s+|\+|(?:%20)+|\s*[:=]\s*)\\*["'` + "`" + `]?([^\s"'` + "`" + `,;&)\\]+)`)
	authorization = regexp.MustCompile(`(?i)\bauthorization["']?(?:\s*[:=]\s*["'\[]*|%3[ad](?:%20|\+)*)(?:basic|digest|negotiate|ntlm|apikey|token)(?:\s+|(?:%20|\+)+)([^\s"'\]]+)`)
	cookie        = regexp.MustCompile(`(?i)\bcookie["']?\s*[:=]\s*["'\[]*([\w.-]+=[^\r\n"'\]]+)`)
	// Of another scheme, or of none, the credential is no word.
	anyAuthorization = regexp.MustCompile(`(?i)\bauthorization["']?\s*[:=]\s*["'\[]*(?:[\w-]+ )?([^\s"'\],;]+)`)
	// A password file of PostgreSQL, one of netrc, and a statement of other servers.
	passFile   = regexp.MustCompile(`(?:^|[\s"'])(?:[\w.-]*[G-Zg-z.][\w.-]*|\*):(?:\d{3,5}|\*):[^:\s]+:[^:\s]+:([^\s"']+)`)
	netrc      = regexp.MustCompile(`(?i)\blogin\s+\S+\s+password\s+(\S+)`)
	identified = regexp.MustCompile(`(?i)\bidentified\s+by\s+(?:password\s+)?('(?:[^'\\]|''|\\.)*'?|"[^"]*"?)`)
	// User info in a URL that is a part of another one.
	encodedInfo = regexp.MustCompile(`(?i)%3a(?:%2f){2}((?:[^\s"'<>&/%]|%(?:[013-9a-f][0-9a-f]|2[0-9a-e]))*)%40`)
	noBearer    = regexp.MustCompile(`(?i)^(?:tokens?|auth|authentication|authorization|schemes?|headers?|credentials?|challenge|prefix|format|(?:realm|error|scope)=.*|is|was|are|were|must|of|or|and|in|to|for|from|not|with)[.:]?$`)
)

// flags are how commands take a password in a flag of one letter, at once or behind a
// blank; mysql at once alone, as -p and a blank has it ask.
var flags = []*regexp.Regexp{
	flag(`sqlcmd|osql|isql|bcp`, `-P\s*`),
	flag(`mysql\w*|mariadb[\w-]*`, `-p=?`),
	flag(`mongo\w*|sshpass|7z\w*`, `-p\s*`),
	flag(`redis-cli`, `-a\s*`),
	flag(`ldap\w+`, `-w\s*`),
	flag(`curl|wget`, `(?:-u|--user)[\s=]*[^\s:"']*:`),
	// Of any other command, where a user is named as mysql does it.
	regexp.MustCompile(`\s-u\s*[^\s-]\S*\s(?:[^\n;|&]*?\s)?-p("(?:[^"\\]|\\.)*"|'[^']*'|\d*[^\s"'\d]\S*)`),
}

const flagged = `("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']+)`

func flag(commands, flag string) *regexp.Regexp {
	return regexp.MustCompile(`\b(?i:` + commands + `)(?:\.exe)?\b[^\n;|&]*?\s["']?` + flag + flagged)
}

func withoutCredentials(s string) string {
	for _, header := range append([]*regexp.Regexp{bearer, authorization, anyAuthorization, cookie, passFile, netrc, identified, encodedInfo}, flags...) {
		var r replaced
		for _, at := range header.FindAllStringSubmatchIndex(s, -1) {
			value := s[at[2]:at[3]]
			word := (header == anyAuthorization || header == netrc) && !isCode(strings.TrimRight(value, ".:)"))
			if !word && !noBearer.MatchString(value) && !strings.Contains(value, Mark[:len(Mark)-1]) {
				r.takeOut(s, at[2], at[3])
			}
		}
		s = r.text(s)
	}
	return s
}

// ---- names

// aName is what a secret may be called, as a word or the end of one, and the blanks
// and quotes behind it.
var aName = regexp.MustCompile(`(?i)([\w.$-]*(?:password|passphrase|passwd|passcode|pwd|psw|secret|token|key|(?:\b|_)pass|(?-i:[a-z]P)ass|(?:user|db|root|sql|login|admin|store)pass|\bpw))(\\*["'\]]*)([\s\p{Z}]*)`)

// withoutNamed takes out the values of what is called a password, passphrase,
// secret, token or key.
func withoutNamed(s string) string {
	var r replaced
	for from := 0; ; {
		at := aName.FindStringSubmatchIndex(s[from:])
		if at == nil {
			return r.text(s)
		}
		for i := range at {
			at[i] += from
		}
		n := named{s: s, from: at[2], name: s[at[2]:at[3]], quoted: at[5] > at[4]}
		from = at[1]
		if start, end := n.value(at[5], at[7]); end > start {
			r.takeOut(s, start, end)
			from = end
		}
	}
}

// named is a name in a text.
type named struct {
	s      string
	from   int
	name   string
	quoted bool // it is in quotes, as in JSON
}

// value returns where the value of the name stands, behind whose quotes and blanks
// these places are; start and end are the same where it has none.
func (n named) value(quotes, blanks int) (start, end int) {
	if continues(n.s[n.from+len(n.name):]) || !n.isSecret() {
		return 0, 0
	}
	if from, to := n.apart(n.from + len(n.name)); to > from {
		return from, to
	}
	for _, sign := range []string{":=", "=>", "=", "\uff1d"} {
		if strings.HasPrefix(n.s[blanks:], sign) {
			return n.assigned(n.skipBlanks(blanks + len(sign)))
		}
	}
	switch rest := n.s[blanks:]; {
	case strings.HasPrefix(rest, ":"):
		return n.told(blanks+1, n.skipBlanks(blanks+1))
	case strings.HasPrefix(rest, "\uff1a"):
		return n.told(blanks+len("\uff1a"), n.skipBlanks(blanks+len("\uff1a")))
	case encodedSign.MatchString(rest): // a query in a query
		start := blanks + len(encodedSign.FindString(rest))
		return start, start + len(encodedValue.FindString(n.s[start:]))
	case blanks > quotes:
		return n.behindBlanks(blanks)
	}
	return 0, 0
}

// nextFlag is a flag of one letter in the place of a value.
var nextFlag = regexp.MustCompile(`^-[A-Za-z](?:\s|$)`)

// behindBlanks returns where the value stands of a flag, or of a password in a statement.
func (n named) behindBlanks(blanks int) (start, end int) {
	switch rest := n.s[blanks:]; {
	case strings.HasPrefix(n.name, "-") && !nextFlag.MatchString(rest):
		return n.assigned(blanks)
	case n.isPassword() && isQuote(rest):
		return blanks, quotedEnd(n.s, blanks)
	case n.isPassword() && ofDollars.MatchString(rest):
		return blanks, between(n.s, blanks, ofDollars)
	case n.isPassword() && strings.HasPrefix(rest, "`"):
		return blanks, blanks + 1 + min(len(rest)-1, until(rest[1:], "`")+1)
	}
	return 0, 0
}

// An equals sign or a colon in a URL, with quotes and blanks beside it, and what follows
// up to the next part of a query, a list or JSON.
var (
	encodedSign  = regexp.MustCompile(`^(?i)(?:%22|%27)?(?:%20|\+)*%3[ad](?:%20|\+)*(?:%22|%27)?`)
	encodedValue = regexp.MustCompile(`^(?:%(?:[014-9A-Fa-f][0-9A-Fa-f]|2[013-589A-Fa-f]|3[0-9AC-Fac-f]|[0-9A-Fa-f]?[^0-9A-Fa-f]|$)|[^%& \t\r\n;"'])*`)
)

// isSecret tells whether what the name has is a secret of its own.
func (n named) isSecret() bool { return !n.isOrdinary() && !n.inUserInfo() }

func (n named) skipBlanks(at int) int {
	return len(n.s) - len(strings.TrimLeftFunc(n.s[at:], func(r rune) bool { return unicode.IsSpace(r) && r != '\n' && r != '\r' }))
}

// inUserInfo tells whether the name is a part of the user info before a host, which is
// taken out as a whole.
func (n named) inUserInfo() bool {
	start := 1 + strings.LastIndexAny(n.s[:n.from], " \t\r\n")
	word := n.s[start:]
	word = word[:until(word, " \t\r\n")]
	from := n.from - start
	if scheme := aScheme.FindStringIndex(word); scheme != nil && scheme[1] <= from {
		return !strings.ContainsAny(word[scheme[1]:from], "/?#") &&
			from < scheme[1]+userInfo(word[scheme[1]:], isDatabase.MatchString(word[scheme[0]:]))
	}
	at := lastStart(anyHost, word)
	return from < at && bareUser(word[:at]) < from
}

var (
	// Words that end in key, and others that make a key no secret.
	ordinaryKey = regexp.MustCompile(`(?i)(?:^|[^a-z])(?:mon|don|tur|hoc|joc|whis|lac|flun|latch|coc|mic|dic|hic|ho?t|short|primary[_-]?|foreign[_-]?|unique[_-]?|public[_-]?|partition[_-]?|sort[_-]?)key$`)
	beforeKey   = regexp.MustCompile(`(?i)\b(?:primary|foreign|unique|duplicate|public|partition|sort)\s+$`)
	password    = regexp.MustCompile(`(?i)(?:pass(?:word|phrase|wd|code)?|pwd|psw)$`)
	bareName    = regexp.MustCompile(`(?i)^(?:secret|token|key)$`)
)

func (n named) isPassword() bool { return password.MatchString(n.name) }

// isOrdinary tells whether the name is no secret's: a word that only ends like one,
// the key of a table, or a part of an ARN.
func (n named) isOrdinary() bool {
	before := n.s[:n.from]
	word := before[1+strings.LastIndexAny(before, " \t\n"):]
	return ordinaryKey.MatchString(n.name) || strings.Contains(word, "arn:") ||
		strings.EqualFold(n.name, "key") && isPair.MatchString(n.s[n.from+len(n.name):]) ||
		strings.EqualFold(n.name, "key") && beforeKey.MatchString(before[max(0, len(before)-20):])
}

// told returns where the value stands behind a colon, which ends at after. Prose has
// colons too: a secret, token or key is told where its value is no word.
func (n named) told(after, start int) (from, to int) {
	if n.quoted { // JSON may go on in the next line
		start += len(n.s[start:]) - len(strings.TrimLeft(n.s[start:], "\r\n \t"))
	}
	rest := n.s[start:]
	switch {
	case isQuote(rest):
		return start, quotedEnd(n.s, start)
	case n.quoted && rest != "" && (rest[0] == '{' || rest[0] == '['):
		return start, start + closed(rest)
	}
	end := start + until(rest, " \t\r\n;,")
	if start > after && bareName.MatchString(n.name) && !n.quoted && !isCode(strings.TrimRight(n.s[start:end], `.:)`)) {
		return 0, 0
	}
	if length := n.below(start); length > 0 {
		return start, start + length
	}
	if length := n.inDump(start); start == after && !n.quoted && length > 0 {
		return start, start + length
	}
	return start, start + len(trimClosing(n.s[start:end]))
}

// isCode tells whether text is no word of a sentence.
func isCode(text string) bool {
	letters := 0
	for i, r := range text {
		if !unicode.IsLetter(r) && r != '\'' && r != '-' || i > 0 && unicode.IsUpper(r) && unicode.IsLower(rune(text[i-1])) {
			return true
		}
		letters++
	}
	return letters >= 16
}

// libpq's other keywords, one of which tells that a list has blanks between its parts.
var libpqNext = regexp.MustCompile(`^(?:\\.|\S)+\s+(?:host|hostaddr|port|dbname|user|password|passfile|sslmode|sslrootcert|sslcert|sslkey|connect_timeout|application_name|options|service|target_session_attrs)\s*=`)

// Quotes of XML, and of dollars in a statement of PostgreSQL.
var (
	ofXML     = regexp.MustCompile(`^&(?:quot|apos|#34|#39);`)
	ofDollars = regexp.MustCompile(`^\$\w*\$`)
)

// between returns where such quotes close that open at start; unclosed, at the end of the
// text.
func between(s string, start int, quotes *regexp.Regexp) int {
	quote := quotes.FindString(s[start:])
	_, after, _ := strings.Cut(s[start+len(quote):], quote)
	return len(s) - len(after)
}

// assigned returns where the value that begins at start ends: as ADO.NET, ODBC, libpq
// and URLs have it.
func (n named) assigned(start int) (from, to int) {
	rest := n.s[start:]
	line := rest[:until(rest, "\r\n")]
	switch {
	case inString.MatchString(rest) && strings.Count(n.s[:n.from], "'")%2 == 1:
		return start, min(len(n.s), start+4+until(rest[2:], "'"))
	case isQuote(rest):
		end := quotedEnd(n.s, start)
		return start, end
	case strings.HasPrefix(rest, "{"):
		return start, start + braced(rest)
	case ofXML.MatchString(rest):
		return start, between(n.s, start, ofXML)
	}
	// What is in quotes as a whole ends with them.
	if quote := enclosing(n.s[:n.from]); quote != 0 {
		line = line[:until(line, string(quote))]
	}
	return start, start + n.unquoted(line)
}

// inString is a string of SQL that is a part of another one: its quotes are doubled.
var inString = regexp.MustCompile(`^''[^\s';,)]`)

// beforeSemicolon is what comes before a semicolon that is no entity's of XML.
var beforeSemicolon = regexp.MustCompile(`^(?:&(?:amp|lt|gt|quot|apos|#\d+|#x[0-9A-Fa-f]+);|[^;])*`)

// unquoted returns how long the value is at the beginning of line.
func (n named) unquoted(line string) int {
	before := strings.TrimRight(n.s[:n.from], " \t")
	inQuery := strings.HasSuffix(before, "?") || strings.HasSuffix(before, "&") || strings.HasSuffix(before, "&amp;")
	semicolon := len(beforeSemicolon.FindString(line))
	switch {
	case inQuery:
		return until(line, "& \t;")
	case strings.HasSuffix(before, ";") || semicolon < len(line) && !libpqNext.MatchString(line): // ADO.NET
		return semicolon
	}
	end := 0 // libpq, a shell, or a word in a sentence
	for end < len(line) && strings.IndexByte(" \t;", line[end]) < 0 {
		if line[end] == '\\' && end+1 < len(line) {
			end++
		}
		end++
	}
	return len(trimClosing(line[:end]))
}

// enclosing returns the double quote or backquote that is open at the end of before,
// on its last line; 0 is none.
func enclosing(before string) byte {
	line := before[strings.LastIndexByte(before, '\n')+1:]
	for _, quote := range []byte{'"', '`'} {
		if strings.Count(line, string(quote))%2 == 1 {
			return quote
		}
	}
	return 0
}

// trimClosing returns text without what a sentence or a list puts behind a word.
func trimClosing(text string) string {
	trimmed := strings.TrimRight(text, `,.)]}"'`)
	switch {
	case trimmed == "":
		return text
	case strings.HasSuffix(trimmed+"]", Mark): // it was taken out before
		return trimmed + "]"
	}
	return trimmed
}

// until returns how long text is up to the first of these characters.
func until(text, ends string) int {
	if i := strings.IndexAny(text, ends); i >= 0 {
		return i
	}
	return len(text)
}

// opening is a quote, with what may stand before it: N'..', E'..', and the slashes of
// a text that is in quotes itself.
var opening = regexp.MustCompile(`^\\*[A-Za-z]?(\\*)(["'])`)

func isQuote(text string) bool { return opening.MatchString(text) }

// quotedEnd returns where the quotes close that open at start: one that is doubled or
// has a slash before it does not; unclosed, at the end of the text.
func quotedEnd(s string, start int) int {
	at := opening.FindStringSubmatchIndex(s[start:])
	quote := s[start+at[4]]
	slashes := strings.Count(s[start:start+at[1]], `\`)
	for i := start + at[1]; i < len(s); i++ {
		if s[i] != quote {
			continue
		}
		have := 0
		for have < i && s[i-1-have] == '\\' && i-have > start+at[1] {
			have++
		}
		doubled := s[i+1:]
		doubled = strings.TrimLeft(doubled[:min(len(doubled), have)], `\`) + doubled[min(len(doubled), have):]
		switch {
		case slashes == 0 && have%2 == 1 || slashes > 0 && have > slashes: // it is escaped
		case strings.HasPrefix(doubled, string(quote)):
			i += len(s[i+1:]) - len(doubled) + 1
		default:
			return i + 1
		}
	}
	return len(s)
}

// braced returns where the braces of ODBC close, in which one is doubled.
func braced(text string) int {
	for i := 1; i < len(text); i++ {
		if text[i] != '}' {
			continue
		}
		if !strings.HasPrefix(text[i+1:], "}") {
			return i + 1
		}
		i++
	}
	return len(text)
}

// closed returns where the brackets of JSON close that open text.
func closed(text string) int {
	depth := 0
	for i, c := range []byte(text) {
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return len(text)
}
