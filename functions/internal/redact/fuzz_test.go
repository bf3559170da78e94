package redact

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// frame is what a secret may stand in: before and after must be left. write gives the
// secret as the format has it, without the characters that it has no form for.
type frame struct {
	before, after string
	write         func(string) string
}

// without returns a writer that leaves out these characters, and control characters.
func withoutAny(chars string, then ...func(string) string) func(string) string {
	return func(secret string) string {
		secret = strings.Map(func(r rune) rune {
			if strings.ContainsRune(chars, r) || unicode.IsControl(r) || r == unicode.ReplacementChar || unicode.IsSpace(r) && (r != ' ' || strings.Contains(chars, " ")) {
				return -1
			}
			return r
		}, secret)
		for _, f := range then {
			secret = f(secret)
		}
		return strings.TrimSpace(secret)
	}
}

func replace(pairs ...string) func(string) string { return strings.NewReplacer(pairs...).Replace }

// ends is what a sentence may end with, so that no word does.
const ends = ` ,.)]}"'` + "`"

// closing are the quotes that go with the secret.
var closing = regexp.MustCompile(`^(?:''|['"}]|&quot;|\$x\$)`)

var frames = []frame{
	{"Server=h;Password=", ";Database=d", withoutAny(`;"'{` + "`")},
	{"Password=", ";Server=h", withoutAny(`;"'{=` + "`")},
	{"it refuses Server=h;Pwd='", "';Database=d", withoutAny(`\`, replace(`'`, `''`))},
	{`Host=h;Password="`, `";Database=d`, withoutAny(`\`, replace(`"`, `""`))},
	{"Driver={x};PWD={", "};Server=h", withoutAny(``, replace("}", "}}"))},
	{"host=h password=", " dbname=d", withoutAny(`'";{`+ends, replace(`\`, `\\`))},
	{"host=h password='", "' dbname=d", withoutAny(``, replace(`\`, `\\`, `'`, `\'`))},
	{"PGPASSWORD=", " psql -h h", withoutAny(`\'";{` + ends)},
	{"psql --password ", " -h h", withoutAny(`\'";{` + ends)},
	{"ALTER ROLE joe PASSWORD '", "' LOGIN", withoutAny(`\`, replace(`'`, `''`))},
	{`{"user":"u","password":`, `,"port":1}`, func(s string) string { b, _ := json.Marshal(s); return string(b) }},
	{`{"client_secret":`, `,"port":1}`, func(s string) string { b, _ := json.Marshal(s); return string(b) }},
	{"x-api-key: ", " was sent", withoutAny(`\'";{` + ends)},
	{"Authorization: Bearer ", " was sent", withoutAny(`\'";={` + ends + `&`)},
	{"postgres://joe:", "@db.example:5432/d failed", withoutAny("")},
	{"sqlserver://joe:", "@db.example failed", withoutAny(" @")},
	{"postgres://joe:", "@db.example/d", url.QueryEscape},
	{"it refuses joe:", "@db.example:5432 for now", withoutAny(`/:`)},
	{"Authorization: Bearer \"", "\" was sent", withoutAny(`\'";={` + ends + `&`)},
	{"ALTER ROLE joe PASSWORD $x$", "$x$ LOGIN", withoutAny("$")},
	{`<add connectionString="Server=h;Password=&quot;`, `&quot;;Database=d"/>`, withoutAny("&")},
	{"https://h/?next=Password%3D", "%3BServer%3Dh&x=1", withoutAny(`;"'&`, url.QueryEscape)},
	{"DB_PASS=", " psql -h h", withoutAny(`\'";{&` + ends)},
	{"it refuses joe@server:", "@db.example:5432/d", withoutAny(` /:@`)},
	{"mysql -u joe -p", " -h h", withoutAny(`\'"=` + ends)},
	{"sshpass -p '", "' ssh h", withoutAny(`'=`)},
	{"redis-cli -a ", " PING", withoutAny(`'"\=` + ends)},
	{"user: joe\npassword: ", "\nhost: h", withoutAny(`\'"#{}[]|>!&;:` + ends)},
	{"password: |\n  ", "\nhost: h", withoutAny("")},
	{`{"name":"DB_PASSWORD","value":`, `,"port":1}`, func(s string) string { b, _ := json.Marshal(s); return string(b) }},
	{`<add key="Password" value="`, `" x="1"/>`, withoutAny(`"\`)},
	{`<Secret type="x">`, `</Secret>`, withoutAny(`<`)},
	{`["tool","--password","`, `","-v"]`, withoutAny(`"\`)},
	{"{User:joe Password:", " Host:h}", withoutAny(`{}[]:,"'\;=@`)},
	{"SELECT set_config('a.password', '", "', false)", withoutAny(`\`, replace(`'`, `''`))},
	{"SET a.token TO '", "'; SELECT 1", withoutAny(`\`, replace(`'`, `''`))},
	{"db.example:5432:d:joe:", " is there", withoutAny(`'"\=@` + ends)},
	{"dblink('host=h password=''", "'' dbname=d')", withoutAny(`'\;,)`)},
	{"CREATE USER joe IDENTIFIED BY '", "' x", withoutAny(`\`, replace(`'`, `''`))},
	{"postgres://db/d?password=", "&sslmode=require", withoutAny(`\'";&#{` + ends)},
}

// planted plants secret in a frame, between words that must be left.
func planted(t *testing.T, f frame, secret, words string) {
	t.Helper()
	written := f.write(secret)
	if len(written) < 5 || strings.Contains(f.before+f.after+words+Mark, written) || noBearer.MatchString(written) {
		return
	}
	out := Text(words + " " + f.before + written + f.after)
	if strings.Contains(out, written) {
		t.Errorf("%s%s%s shows it: %s", f.before, written, f.after, out)
	}
	if !strings.HasPrefix(out, words) || !strings.HasSuffix(out, closing.ReplaceAllString(f.after, "")) {
		t.Errorf("%s %s%s%s eats words: %s", words, f.before, written, f.after, out)
	}
}

func FuzzAPlantedSecretNeverComesOut(f *testing.F) {
	for i := range frames {
		f.Add(uint8(i), "hunter2 is my;pass'word", uint8(0))
	}
	sentences := []string{"connection refused", "Login failed for the user.", "12:30 key (id) is no token"}
	f.Fuzz(func(t *testing.T, frame uint8, secret string, words uint8) {
		planted(t, frames[int(frame)%len(frames)], secret, sentences[int(words)%len(sentences)])
	})
}

// The same where the fuzzer does not run, with the characters of passwords.
func TestARandomSecretNeverComesOut(t *testing.T) {
	const chars = `abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 !#$%&()*+,-./:;<=>?@[]^_{|}~'"\é`
	random := rand.New(rand.NewPCG(1, 2))
	runes := []rune(chars)
	for range 5_000 {
		secret := make([]rune, 6+random.IntN(20))
		for i := range secret {
			secret[i] = runes[random.IntN(len(runes))]
		}
		planted(t, frames[random.IntN(len(frames))], string(secret), "it says")
	}
}

// A token comes out in no form of a UUID, and what stands beside it is left.
func TestARandomTokenNeverComesOut(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 3_000 {
		var token [16]byte
		for i := range token {
			token[i] = byte(random.Uint32())
		}
		digits := hex.EncodeToString(token[:])
		gap := []string{" ", ":", " : ", "-", "\t", "  ", "%20", ", ", "."}[random.IntN(9)]
		groups := [][]int{{8, 4, 4, 4, 12}, {4, 4, 4, 4, 4, 4, 4, 4}, slices.Repeat([]int{2}, 16)}[random.IntN(3)]
		var parts []string
		for rest, i := digits, 0; rest != ""; i++ {
			parts, rest = append(parts, rest[:groups[i]]), rest[groups[i]:]
		}
		written := strings.Join(parts, gap)
		if len(groups) == 8 && anAddress.MatchString(written) {
			continue
		}
		if random.IntN(2) == 0 {
			written = strings.ToUpper(written)
		}
		if out := Text("the row " + written + " is gone"); out != "the row "+Mark+" is gone" {
			t.Fatalf("%s gives %s", written, out)
		}
	}
}

// A login's password comes out in no form that is its own, wherever it stands.
func FuzzAPasswordNeverComesOut(f *testing.F) {
	for form := range 24 {
		f.Add("hunter2 \\'\"é%&", "a", uint8(form), "b")
	}
	f.Fuzz(func(t *testing.T, password, before string, form uint8, after string) {
		if len(password) < 4 || strings.ContainsRune(password, unicode.ReplacementChar) || strings.TrimSpace(password) == "" || len(before+after) > 500 {
			return
		}
		quoted, _ := json.Marshal(password)
		forms := []string{
			password, strings.ToUpper(password), url.QueryEscape(password), url.PathEscape(password), string(quoted[1 : len(quoted)-1]),
			strings.ReplaceAll(password, "'", "''"), base64.StdEncoding.EncodeToString([]byte(password)), base64.URLEncoding.EncodeToString([]byte("joe:" + password)),
			hex.EncodeToString([]byte(password)), strings.ToUpper(hex.EncodeToString([]byte(password))), fmt.Sprintf("%q", password), everyByte(password),
			base64.RawStdEncoding.EncodeToString([]byte(password)), base64.RawURLEncoding.EncodeToString([]byte(password)),
			url.QueryEscape(base64.RawStdEncoding.EncodeToString([]byte(password))), base64.RawStdEncoding.EncodeToString([]byte("joe:" + password)),
			html.EscapeString(password), fmt.Sprintf("% x", password), fmt.Sprintf("% X", password), numbersOf(password), entitiesOf("&#%d;", password), entitiesOf("&#x%x;", password),
			url.QueryEscape(url.QueryEscape(password)), strings.ReplaceAll(everyByte(password), "%", "%25"),
		}
		written := forms[int(form)%len(forms)]
		out := Login("<"+before+"> "+written+" <"+after+">", NewSecret("joe"), NewSecret(password))
		if form := int(form) % len(forms); form == 1 && !strings.EqualFold(written, password) {
			return // ß has two letters in capitals
		}
		if strings.Contains(out, written) && !strings.Contains("<"+before+">  <"+after+">"+Mark, written) {
			t.Errorf("%q as %q: %q", password, written, out)
		}
	})
}

func everyByte(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02x", c)
	}
	return b.String()
}
