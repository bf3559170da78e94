package secret

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseURLReadsBothEngines(t *testing.T) {
	for text, want := range map[string]string{
		`postgres://u:p@db.example:5433/EdFi_Admin`:                                       "postgres db.example 5433 EdFi_Admin u p false",
		`postgresql://u:p%2F%3F%23%40%25@db.example?sslmode=require`:                      "postgres db.example 0  u p/?#@% false",
		`postgres://u:p@[::1]:5432/d?sslmode=disable`:                                     "postgres ::1 5432 d u p true",
		`sqlserver://u:p@db.example:1434?database=EdFi_Admin&encrypt=true`:                "sqlserver db.example 1434 EdFi_Admin u p false",
		`sqlserver://u%5Cx:p%20q@db.example/?encrypt=disable&database=EdFi_Admin_Tenant1`: `sqlserver db.example 0 EdFi_Admin_Tenant1 u\x p q true`,
	} {
		l, plaintext, err := ParseURL(text)
		if got := fmt.Sprintf("%s %s %d %s %s %s %t", l.Engine, l.Host, l.Port, l.Database, l.Username.Reveal(), l.Password.Reveal(), plaintext); err != nil || got != want {
			t.Errorf("%s:\n%q, %v, want\n%q", text, got, err, want)
		}
	}
}

func TestParseURLRefusesWhatItWouldMisread(t *testing.T) {
	for text, want := range map[string]string{
		`hunter2`:                                                "must be a URL",
		`postgres://u:hunter2/x@db.example/d`:                    "must be a URL",
		`postgres://u:hunter2%zz@h/d`:                            "must be a URL",
		`host=h user=u password=hunter2`:                         "must be a URL",
		`mysql://u:hunter2@h/d`:                                  "postgres:// or sqlserver://",
		`postgres://u@h/d`:                                       "user, password and host",
		`postgres://:hunter2@h/d`:                                "user, password and host",
		`postgres://u:hunter2@:5432/d`:                           "user, password and host",
		`postgres://u:hunter2@h:0/d`:                             "port",
		`postgres://u:hunter2@h/d?host=other`:                    "no other parameters",
		`postgres://u:hunter2@h/d?sslmode=a&sslmode=disable`:     "each once",
		`sqlserver://u:hunter2@h/SQLEXPRESS?database=EdFi_Admin`: "names an instance",
		`sqlserver://u:hunter2@h?database=d&server=other`:        "no other parameters",
		`sqlserver://u:hunter2@h?database=%zz`:                   "a query that can't be read",
	} {
		_, _, err := ParseURL(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
