package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/testing/docs"
)

// parameter is one of template.yaml, as far as it limits its values.
type parameter struct {
	pattern   *regexp.Regexp
	notAWS    bool // the pattern refuses what begins with AWS/, in a way that Go's don't know
	values    []string
	maxLength int
}

// takes tells whether CloudFormation takes the value: it matches the whole of it, as
// all patterns say themselves.
func (p parameter) takes(value string) bool {
	reserved := p.notAWS && strings.HasPrefix(value, "AWS/")
	return !reserved && (p.pattern == nil || p.pattern.MatchString(value)) &&
		(p.values == nil || slices.Contains(p.values, value)) && (p.maxLength == 0 || len(value) <= p.maxLength)
}

// template reads the parameters of template.yaml, and which variable of the function
// is whose value. It reads the few forms of YAML that they are written in.
func template(t *testing.T) (parameters map[string]parameter, variables map[string]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs.Root(), "template.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// A quoted text goes on behind a \ at a line's end.
	yaml := regexp.MustCompile(`\\\n *`).ReplaceAllString(string(text), "")
	_, section, _ := strings.Cut(yaml, "\nParameters:\n")
	section, rest, _ := strings.Cut(section, "\nRules:\n")

	parameters = map[string]parameter{}
	var name string
	for line := range strings.Lines(section) {
		if m := regexp.MustCompile(`^  (\w+):$`).FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			name = m[1]
			parameters[name] = parameter{}
			continue
		}
		m := regexp.MustCompile(`^    (AllowedPattern|AllowedValues|MaxLength): (.*?)( # .*)?\n$`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		p, value := parameters[name], m[2]
		switch m[1] {
		case "AllowedPattern":
			if quoted := strings.HasPrefix(value, `"`); quoted {
				value = strings.ReplaceAll(strings.Trim(value, `"`), `\\`, `\`)
			}
			value, p.notAWS = strings.ReplaceAll(value, `(?!AWS/)`, ``), strings.Contains(value, `(?!AWS/)`)
			if p.pattern, err = regexp.Compile(value); err != nil || !strings.HasPrefix(value, "^") || !strings.HasSuffix(value, "$") {
				t.Fatalf("%s: %s, %v", name, value, err)
			}
		case "AllowedValues":
			for item := range strings.SplitSeq(strings.Trim(value, "[]"), ",") {
				p.values = append(p.values, strings.Trim(item, " '"))
			}
		case "MaxLength":
			if _, err := fmt.Sscan(value, &p.maxLength); err != nil {
				t.Fatal(err)
			}
		}
		parameters[name] = p
	}

	variables = map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^          ([A-Z_]+): !Ref (\w+)$`).FindAllStringSubmatch(rest, -1) {
		variables[m[1]] = m[2]
	}
	return parameters, variables
}

// Whatever the template takes, the function takes, or every run would fail by a
// value that the deployment let through. The values on both sides are told apart by
// the function; the template may refuse more, which is said here.
func TestTheTemplateRefusesWhatTheFunctionRefuses(t *testing.T) {
	durations := []string{
		"0s", "1ms", "500ms", "2s", "10s", "1.5s", "1m30s", "24h", "1h30m", "1h30m10s", "999999h", "999999h999999m999999m999999m",
		"", "0", "5", "1d", "-1h", "+1h", "1 h", "1h ", ".5s", "1.s", "s", "1,5s", "1e3s", "9999999h", "99999999999999999999h", "1us", "1s!",
		"79999h59m59s", "87600h", "87601h", "87600h1ms", "99999h", "99999m", "79999.999h999m999m999m", "999999m999m",
	}
	numbers := []string{
		"0", "1", "2", "4", "9", "10", "29", "30", "31", "32", "33", "99", "100", "999", "1000", "1001", "5000", "999999", "1000000", "1000001",
		"999999999999999999", "4611686018427387904", "4611686018427387905", "9223372036854775808", "18446744073709551616",
		"", "-1", "+1", "01", "1.5", "1.0", "1e3", "0x10", "1_000", "1,000", " 1", "many",
	}
	hosts := []string{
		"db", "db.example.org", "db_1.example.org", "10.0.0.1", "edfi.cluster-example.us-east-1.rds.amazonaws.com", strings.Repeat("a", 253),
		"::", "::1", "1::", "fe80::1", "2001:db8::1:2", "2001:db8:0:1:2:3:4:5", "2001:DB8::5", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6::8", "1::3:4:5:6:7:8",
		"", "db.example.org:5432", "10.0.0.1:1433", "cafe:1433", "[::1]", "[::1]:5432", "host name", "host,1433", `host\SQLEXPRESS`, "tcp:host",
		"postgres://db.example.org/EdFi_Admin", "https://db.example.org", "Server=db;Database=x", "user@db", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2::3", ":::", "12345::", "g::1",
	}
	databases := []string{
		"EdFi_Admin", "EdFi_Admin,EdFi_Admin_2", "EdFi_Admin*,!EdFi_Admin_Template", "*", "!a,b", "! a , b ,c", "!a,!b,c*", "a b", "Ed-Fi Admin, x", "ügüm", "EdFi_Admin_?", "a.b",
		"", "A,,B", "A,", ",A", ",", "!A", "!A,!B", "!", "A,!", "a!b", "A,!!B", "postgres://u:p@h/x", "Server=h;Database=d", "password=x", "u:p@h", "host=h user=u", "a\tb", "a\nb", "a\x00b", "A, ,B",
	}
	namespaces := []string{"EdFi/TokenPurge", "a", "A.b-c_d/e#f:g", "AWS", "aws/x", strings.Repeat("n", 255), "", "AWS/x", "a b", `a"b`, strings.Repeat("n", 256), "a,b"}
	truths := []string{"true", "false", "", "True", "yes", "1"}

	table := map[string][]string{
		"DATABASES": databases, "DB_ENGINE": {"", "postgres", "sqlserver", "mysql", "oracle", "Postgres!"},
		"TABLES":        {"ClientAccessTokens", "adminapi.Tokens,dmscs.OpenIddictToken,ClientAccessTokenLogs", "", "clientaccesstokens", "dbo.ClientAccessTokens", "ClientAccessTokens,", ",", "adminapiXTokens", "Users", "ClientAccessTokens;adminapi.Tokens"},
		"LOG_RETENTION": append(durations, "23h", "25h", "99h", "100h", "2160h", "79999h", "87599h", "87600h", "87601h", "88000h", "99999h", "100000h"),
		"DB_HOST":       hosts, "DB_PORT": append(numbers, "65535", "65536", "65529", "65530", "65499", "65500", "64999", "65000", "59999", "60000", "66000", "70000", "100000", "065"),
		"DB_TLS": {"verify-full", "disable", "", "require", "strict", "Disable"}, "GRACE_PERIOD": durations, "BATCH_SIZE": numbers,
		"BATCH_TARGET": durations, "CONCURRENCY": numbers, "PARALLEL_DATABASES": numbers, "PAUSE": durations, "MAX_ROWS": numbers,
		"LOCK_TIMEOUT": append(durations, "0ms", "00ms", "0m0s", "0.5ms", "0.001s", "1m0s"), "STOP_BEFORE": append(durations, "1s", "0.5s", "999ms", "1m0s", "1000ms", "899s", "900s", "1000s", "14m59s", "15m"),
		"CONNECT_TIMEOUT":   append(durations, "1s", "0.5s", "999ms", "1m0s", "1000ms", "899s", "900s", "901s", "1000s", "14m59s", "15m", "15m1s"),
		"METRICS_NAMESPACE": namespaces, "METRICS_PER_DATABASE": truths,
	}
	// The function takes these, and the template doesn't: nothing at all, which
	// leaves the default to the function; other ways to write the same; and numbers
	// beyond use.
	alone := []string{
		"", "0", "+1", "01", "065", " 1", "+1h", "1h ", ".5s", "1.s", "1us", "0.001s", "1000ms",
		"1h30m10s", "79999h59m59s", "99999m", "79999.999h999m999m999m", "999999m999m",
		"1000001", "999999999999999999", "4611686018427387904",
	}

	// With these no run has time to delete anything, whatever Timeout is.
	tooLong := []string{"900s", "1000s", "15m", "24h", "1h30m", "1h30m10s", "79999h59m59s", "87600h", "99999m", "79999.999h999m999m999m", "999999m999m"}

	parameters, variables := template(t)
	if want := slices.Sorted(maps.Keys(table)); !slices.Equal(slices.Sorted(maps.Keys(withoutSecret(variables))), want) {
		t.Errorf("the template sets %v, the table has %v", variables, want)
	}
	for variable, values := range table {
		p, taken, refused := parameters[variables[variable]], 0, 0
		if p.pattern == nil && p.values == nil {
			t.Errorf("%s has neither a pattern nor a list", variables[variable])
		}
		for _, value := range values {
			_, faults := readConfig(env("SECRET_ID=s", variable+"="+value))
			switch byTemplate := p.takes(value); {
			case byTemplate && faults != nil:
				t.Errorf("%s takes %q: every run would fail, %s", variables[variable], value, faults)
			case byTemplate:
				taken++
			case faults != nil:
				refused++
			case variable == "STOP_BEFORE" && slices.Contains(tooLong, value):
			case !slices.Contains(alone, value):
				t.Errorf("%s refuses %q, which the function takes", variables[variable], value)
			}
		}
		if taken == 0 || refused == 0 {
			t.Errorf("%s: %d values are taken and %d are refused by both", variables[variable], taken, refused)
		}
		t.Logf("%-18s takes %d of these, refuses %d as the function does, and %d more", variables[variable], taken, refused, len(values)-taken-refused)
	}
}

func withoutSecret(variables map[string]string) map[string]string {
	rest := maps.Clone(variables)
	delete(rest, "SECRET_ID") // any ARN; Secrets Manager alone knows whether there is one
	return rest
}
