package secret

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

// Every secret in the seeds is this text. Fuzzing may move it anywhere. No error may
// show it, because no error quotes its input.
const mark = "hunter2"

func check(t *testing.T, text string, login Login, err error) {
	t.Helper()
	if err == nil && (login.Username.Reveal() == "" || login.Password.Reveal() == "") {
		t.Errorf("%q: no error, and no login", text)
	}
	if err != nil && strings.Contains(err.Error(), mark) {
		t.Errorf("%q is quoted: %v", text, err)
	}
	hidden := Login{Username: login.Username, Password: login.Password}
	if out := fmt.Sprintf("%v %+v %#v", hidden, hidden, &hidden); strings.Contains(out, mark) {
		t.Errorf("%q is printed: %s", text, out)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"engine":"postgres","host":"h","port":5432,"username":"u","password":"hunter2","dbname":"d"}`)
	f.Fuzz(func(t *testing.T, text string) {
		login, err := Parse(text)
		check(t, text, login, err)
		// Each error names a field, or says what the secret is.
		if err != nil && !strings.HasPrefix(err.Error(), "the secret") {
			t.Errorf("%q: %v", text, err)
		}
	})
}

func FuzzParseAddress(f *testing.F) {
	f.Add("postgres://u:hunter2@h:5432/d?sslmode=disable")
	f.Fuzz(func(t *testing.T, text string) {
		login, err := ParseAddress(text)
		check(t, text, login, err)
		if err == nil && (login.Host == "" && scheme.MatchString(text) || !strings.Contains(strings.ToLower(text), login.TLS) && !strings.Contains(text, "%")) {
			t.Errorf("%q: %+v", text, login)
		}
		// All that a result shows has a place of its own.
		if host := strings.ToLower(login.Host); err == nil && scheme.MatchString(text) && !strings.Contains(strings.ToLower(text), "@"+host) && !strings.ContainsAny(text, "%[") {
			t.Errorf("%q: the host is %q", text, login.Host)
		}
	})
}

// Each form of a secret holds any login, whatever its characters.
func FuzzALoginIsReadAsItWasWritten(f *testing.F) {
	f.Add("joe", "hunter2")
	f.Fuzz(func(t *testing.T, user, password string) {
		if user == "" || password == "" || !utf8.ValidString(user) || !utf8.ValidString(password) {
			return // not a login, or not one that JSON can hold
		}
		written, err := json.Marshal(map[string]string{"username": user, "password": password})
		if err != nil {
			t.Fatal(err)
		}
		double := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
		single := func(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
		address := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: "h"}
		fromURL, err := ParseAddress(address.String())
		forms := map[string]Login{"the URL": fromURL}
		for form, text := range map[string]string{
			"JSON":        string(written),
			"Npgsql's":    "host=h;username=" + double(user) + ";password=" + double(password),
			"SqlClient's": "Server=h;User Id=" + single(user) + " ; Password=" + single(password) + ";Encrypt=true",
		} {
			if err == nil {
				forms[form], err = Parse(text)
			}
		}
		if err != nil {
			t.Fatalf("%q %q: %v", user, password, err)
		}
		for form, login := range forms {
			if login.Username.Reveal() != user || login.Password.Reveal() != password {
				t.Errorf("%s gives %q and %q, not %q and %q", form, login.Username.Reveal(), login.Password.Reveal(), user, password)
			}
		}
	})
}
