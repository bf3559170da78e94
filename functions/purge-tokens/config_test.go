package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func env(settings ...string) func(string) string {
	return func(name string) string {
		for _, s := range settings {
			if n, v, _ := strings.Cut(s, "="); n == name {
				return v
			}
		}
		return ""
	}
}

func TestDefaults(t *testing.T) {
	c, faults := readConfig(env("SECRET_ID=s", "BATCH_SIZE=", "DATABASES= "))
	if faults != nil {
		t.Fatal(faults)
	}
	p := c.policy
	if c.databases != nil || c.tls != "" || !c.metricsPerDatabase || c.lockTimeout != 2*time.Second || c.policy.ConnectTimeout != 45*time.Second || c.namespace != "EdFi/TokenPurge" ||
		p.BatchSize != 0 || p.MaxRows != 0 || p.Grace != 0 || p.StopBefore != 10*time.Second || p.Parallel != 4 || p.Pause != 0 {
		t.Errorf("%+v", c)
	}
}

func TestEachSettingIsRead(t *testing.T) {
	c, faults := readConfig(env("SECRET_ID=s", "DATABASES=A, B,A", "DB_ENGINE=aurora-postgresql", "DB_HOST=h", "DB_PORT=1", "DB_TLS=disable",
		"GRACE_PERIOD=24h", "BATCH_SIZE=7", "PAUSE=1s", "MAX_ROWS=9", "LOCK_TIMEOUT=3s", "CONNECT_TIMEOUT=1m", "STOP_BEFORE=1s", "METRICS_NAMESPACE=My/Space", "METRICS_PER_DATABASE=false", "PARALLEL_DATABASES=2", "AWS_ENDPOINT_URL=https://h"))
	if faults != nil {
		t.Fatal(faults)
	}
	p := c.policy
	if len(c.databases.Resolve(nil, false)) != 2 || c.engine != "aurora-postgresql" || c.host != "h" || c.port != 1 || c.tls != "disable" ||
		p.Grace != 24*time.Hour || p.BatchSize != 7 || p.Pause != time.Second || p.MaxRows != 9 || c.lockTimeout != 3*time.Second || c.policy.ConnectTimeout != time.Minute ||
		p.StopBefore != time.Second || c.metricsPerDatabase || c.namespace != "My/Space" || p.Parallel != 2 {
		t.Errorf("%+v", c)
	}
}

func TestEveryFaultIsNamedAndNoValueShown(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "hunter2.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"SECRET_ID=", "DB_ENGINE=hunter2", "DB_PORT=hunter2", "DB_PORT=0", "DB_PORT=65536", "DB_TLS=require", "DB_CA_BUNDLE=/hunter2",
		"DB_CA_BUNDLE=" + empty, "GRACE_PERIOD=-1s", "GRACE_PERIOD=hunter2", "GRACE_PERIOD=87600h1ns", "GRACE_PERIOD=2366000h", "LOG_RETENTION=87601h", "LOG_RETENTION=23h",
		"BATCH_TARGET=2500000h", "LOCK_TIMEOUT=87601h", "STOP_BEFORE=87601h", "PAUSE=87601h", "BATCH_SIZE=0", "BATCH_SIZE=-1", "BATCH_SIZE=1.5",
		"PAUSE=-1s", "PAUSE=5", "MAX_ROWS=-1", "LOCK_TIMEOUT=0s", "STOP_BEFORE=-1s", "STOP_BEFORE=0s", "STOP_BEFORE=999ms", "METRICS_PER_DATABASE=no", "CONNECT_TIMEOUT=0s", "CONNECT_TIMEOUT=999ms", "CONNECT_TIMEOUT=15m1s", "CONNECT_TIMEOUT=hunter2", "METRICS_NAMESPACE=a b", "METRICS_NAMESPACE=AWS/x",
		"PARALLEL_DATABASES=0", "DATABASES=A,,B", "DATABASES=!A", "DATABASES=,", "DATABASES=host=h password=hunter2", "DATABASES=A,Server=hunter2", "DATABASES=u:hunter2@h",
		"DATABASES=A,postgres://u:hunter2@h/x", "AWS_ENDPOINT_URL=hunter2", "AWS_ENDPOINT_URL_SECRETS_MANAGER=http://hunter2%zz", "AWS_ENDPOINT_URL=h:1",
	} {
		name, value, _ := strings.Cut(bad, "=")
		_, faults := readConfig(env(bad, "SECRET_ID=s"))
		if len(faults) != 1 || !strings.HasPrefix(faults[0], name+" ") {
			t.Errorf("%s: %v", bad, faults)
		} else if len(value) > 3 && strings.Contains(faults[0], value) || strings.Contains(faults[0], "hunter2") {
			t.Errorf("%s: the value is shown: %v", bad, faults)
		}
	}
	for _, instance := range []string{`DB_HOST=h\hunter2`, `DB_HOST=(local)\hunter2`} {
		if _, faults := readConfig(env(instance, "SECRET_ID=s")); len(faults) != 1 || !strings.Contains(faults[0], "has a port") || strings.Contains(faults[0], "hunter2") {
			t.Errorf("%s: %v", instance, faults)
		}
	}
	if _, faults := readConfig(env("BATCH_SIZE=x", "PAUSE=x")); len(faults) != 3 {
		t.Errorf("%v, want SECRET_ID, BATCH_SIZE and PAUSE", faults)
	}
}

// The largest value is told, and it and the sum of all are taken by every engine: the
// cut-off stays behind the first instant that SQL Server's datetime has.
func TestTheLongestDurationsAreTakenAndTold(t *testing.T) {
	for name, most := range map[string]string{"GRACE_PERIOD": "87600h", "LOG_RETENTION": "87600h", "PAUSE": "87600h", "BATCH_TARGET": "87600h", "LOCK_TIMEOUT": "87600h", "STOP_BEFORE": "87600h", "CONNECT_TIMEOUT": "15m"} {
		if _, faults := readConfig(env("SECRET_ID=s", name+"="+most)); faults != nil {
			t.Error(faults)
		}
		if _, faults := readConfig(env("SECRET_ID=s", name+"="+most+"1ms")); len(faults) != 1 || !strings.HasSuffix(faults[0], " to "+most) {
			t.Errorf("%s: %q", name, faults)
		}
	}
	c, faults := readConfig(env("SECRET_ID=s", "TABLES=ClientAccessTokens,adminapi.Tokens,ClientAccessTokenLogs", "GRACE_PERIOD=87600h", "LOG_RETENTION=87600h", "BATCH_TARGET=87600h"))
	if faults != nil || c.policy.Longest() <= 0 {
		t.Errorf("%v, %s", faults, c.policy.Longest())
	}
	now := time.Now()
	for _, table := range c.tables {
		if cutoff := table.Cutoff(now, c.policy.Grace); cutoff.Year() < 1990 || cutoff.After(now) {
			t.Errorf("%s: %s", table.Name, cutoff)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", 10 * time.Minute: "10m", 20 * time.Hour: "20h", time.Millisecond: "1ms", 90 * time.Second: "1m30s", 61 * time.Minute: "1h1m", time.Hour + time.Second: "1h0m1s"} {
		if got := brief(d); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// A part of what is not encoded would be taken for a host, looked up and shown.
func TestADatabaseURLThatWouldBeMisreadIsRefusedByName(t *testing.T) {
	for _, bad := range []string{
		"postgres://u:p/hunter2@h/d", "postgres://u:1/hunter2@h:5432/d", "postgres://u:p@hunter2@h/d", "postgres://u:p#hunter2@h/d", "postgres://u:1#hunter2@h/d",
		"postgres://u:p?hunter2@h/d", "postgres://u:p@h/hunter2/d", "postgres://u:p@hunter2,h2/d", "postgres://u:p@%2Fhunter2/d", "postgres://u:p@h:hunter2/d",
		"postgres://u:p@h/host=hunter2;password=x", "postgres://u:p@h/x%3A%2F%2Fhunter2", "postgres://u:p@h/" + strings.Repeat("d", 64), "postgres://u:p@h/a%0Ahunter2",
		"host=hunter2/x;username=u;password=p", "host=a hunter2;username=u;password=p", "host=h1,hunter2;username=u;password=p", "host=h user=u password=hunter2",
		"Server=hunter2@h,1433;User Id=u;Password=p", "Server=h,1433;Database=u:hunter2@h;User Id=u;Password=p", "server=h;user id=u;password=hunter2",
		"hunter2", "mysql://u:hunter2@h/d",
	} {
		c, faults := readConfig(env("DATABASE_URL=" + bad))
		if len(faults) != 1 || !strings.HasPrefix(faults[0], "DATABASE_URL ") || strings.Contains(faults[0], "hunter2") || strings.Contains(faults[0], "the secret") {
			t.Errorf("%s: %q, %+v", bad, faults, c.login)
		}
	}
}

func TestADatabaseURLMayBeAConnectionStringOfEdFi(t *testing.T) {
	for text, want := range map[string]string{
		"host=db.example;port=5433;username=u;password='a@/#;';database=EdFi_Admin":     "postgres db.example:5433 EdFi_Admin ",
		"Server=tcp:db.example;Database=EdFi_Admin;User Id=u;Password=p;Encrypt=False":  "sqlserver db.example:1433 EdFi_Admin ",
		"Server=tcp:db.example;Database=EdFi_Admin;User Id=u;Password=p;Encrypt=Strict": "sqlserver db.example:1433 EdFi_Admin strict",
		"Host=::1;Username=u;Password=p;SSL Mode=Disable":                               "postgres [::1]:5432  disable",
		"sqlserver://u:p@[fd00::1]?database=EdFi_Admin&encrypt=disable":                 "sqlserver [fd00::1]:1433 EdFi_Admin disable",
		"sqlserver://u:p@h?encrypt=strict":                                              "sqlserver h:1433  strict",
	} {
		c, faults := readConfig(env("DATABASE_URL=" + text))
		engine, _ := engineNamed(c.login.Engine)
		if got := fmt.Sprintf("%s %s %s %s", engine.name, address(c.login), c.login.Database, c.login.TLS); faults != nil || got != want {
			t.Errorf("%s: %s, %q, want %s", text, got, faults, want)
		}
	}
	// What DB_TLS says holds.
	for _, text := range []string{"sqlserver://u:p@h?encrypt=strict", "sqlserver://u:p@h?encrypt=disable", "Host=h;Username=u;Password=p;SSL Mode=Disable"} {
		if c, faults := readConfig(env("DATABASE_URL="+text, "DB_TLS=verify-full")); faults != nil || c.login.TLS != "verify-full" {
			t.Errorf("%s: %+v, %q", text, c.login, faults)
		}
	}
	// Keywords that both libraries know tell no engine.
	if c, faults := readConfig(env("DATABASE_URL=server=h;user id=u;password=p", "DB_ENGINE=sqlserver")); faults != nil || c.login.Port != 1433 {
		t.Errorf("%+v, %q", c.login, faults)
	}
}

func TestAnEngineIsKnownByAllItsNamesInAnyLetterCase(t *testing.T) {
	for name, want := range map[string]string{"Postgres": "postgres", "aurora-postgresql": "postgres", "SQLServer": "sqlserver", "sqlserver-EE": "sqlserver", "sqlserver-dev-ee": "sqlserver", "sqlserver-dev-se": "sqlserver", "custom-sqlserver-ee": "sqlserver", "custom-sqlserver-dev": "sqlserver", "PostgreSQL": "postgres", "mysql": "", "": ""} {
		if e, known := engineNamed(name); e.name != want || known != (want != "") {
			t.Errorf("%q is %q", name, e.name)
		}
	}
}

func FuzzReadConfig(f *testing.F) {
	f.Add("s", "A,B*,!C", "1h", "5", "verify-full", "")
	f.Add("", ",", "-1h", "x", "", "postgres://u:hunter2@h/d")
	f.Fuzz(func(t *testing.T, id, databases, duration, number, choice, url string) {
		names := []string{"SECRET_ID", "DATABASES", "GRACE_PERIOD", "STOP_BEFORE", "BATCH_SIZE", "MAX_ROWS", "DB_PORT", "DB_TLS", "DB_ENGINE", "DATABASE_URL"}
		values := []string{id, databases, duration, duration, number, number, number, choice, choice, url}
		// Once as they are, and once with a mark in each value: no error may show it.
		for _, mark := range []string{"", "hunter2"} {
			c, faults := readConfig(func(name string) string {
				if i := slices.Index(names, name); i >= 0 && values[i] != "" {
					return values[i] + mark
				}
				return ""
			})
			if faults == nil && (c.policy.Grace < 0 || c.policy.StopBefore < 0 || c.policy.BatchSize < 0 || c.policy.MaxRows < 0 || c.secretID == "" && c.login.Host == "") {
				t.Errorf("%+v", c)
			}
			for _, fault := range faults {
				if name, _, _ := strings.Cut(fault, " "); !slices.Contains(names, name) {
					t.Errorf("no variable is named: %s", fault)
				}
				if strings.Contains(fault, "hunter2") {
					t.Errorf("a value is shown: %s", fault)
				}
			}
		}
	})
}
