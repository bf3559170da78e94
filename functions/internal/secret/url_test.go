package secret

import (
	"fmt"
	"strings"
	"testing"
)

func TestAnAddressIsReadForBothEngines(t *testing.T) {
	for text, want := range map[string]string{
		`postgres://u:p@db.example:5433/EdFi_Admin`:                                       "postgres db.example 5433 EdFi_Admin u p ",
		`postgresql://u:p%2F%3F%23%40%25@db.example?sslmode=require`:                      "postgres db.example 0  u p/?#@% ",
		`postgres://u:p@[::1]:5432/d?sslmode=disable`:                                     "postgres ::1 5432 d u p disable",
		`sqlserver://u:p@db.example:1434?database=EdFi_Admin&encrypt=true`:                "sqlserver db.example 1434 EdFi_Admin u p ",
		`sqlserver://u%5Cx:p%20q@db.example/?encrypt=disable&database=EdFi_Admin_Tenant1`: `sqlserver db.example 0 EdFi_Admin_Tenant1 u\x p q disable`,
		`sqlserver://u:p@db.example?database=EdFi_Admin&encrypt=Strict`:                   "sqlserver db.example 0 EdFi_Admin u p strict",
		`postgres://u:p@db.example/d?sslmode=strict`:                                      "postgres db.example 0 d u p ",
		// As Ed-Fi keeps them.
		`Server=db.example,1434;Database=EdFi_Admin;User Id=u;Password=p;Encrypt = STRICT`:                    "sqlserver db.example 1434 EdFi_Admin u p strict",
		`Host=db.example;Username=u;Password=p;Encrypt=Strict`:                                                "postgres db.example 0  u p ",
		`Server=db.example;Instance=SQL2019;Port=1500;User Id=u;Password=p`:                                   "sqlserver db.example 1500  u p ",
		`Server=db.example,1434;Authentication=Sql Password;User Id=u;Password=p`:                             "sqlserver db.example 1434  u p ",
		`Server=db.example\SQL2019,1500;User Id=u;Password=p`:                                                 "sqlserver db.example 1500  u p ",
		`host=db.example;port=5433;username=u;password="p;@/";database=EdFi_Admin`:                            "postgres db.example 5433 EdFi_Admin u p;@/ ",
		`Host=db.example;Username=u;Password=p;SSL Mode=Disable`:                                              "postgres db.example 0  u p disable",
		`Server=db.example,1434;Database=EdFi_Admin;User Id=u;Password=p@q;Encrypt=False`:                     "sqlserver db.example 1434 EdFi_Admin u p@q ",
		"\ufeffData Source=tcp:db.example;Initial Catalog=EdFi_Admin;UID=u;PWD=p;TrustServerCertificate=true": "sqlserver db.example 0 EdFi_Admin u p ",
	} {
		l, err := ParseAddress(text)
		if got := fmt.Sprintf("%s %s %d %s %s %s %s", l.Engine, l.Host, l.Port, l.Database, l.Username.Reveal(), l.Password.Reveal(), l.TLS); err != nil || got != want {
			t.Errorf("%s:\n%q, %v, want\n%q", text, got, err, want)
		}
	}
}

func TestAnAddressThatWouldBeMisreadIsRefused(t *testing.T) {
	const misread = "percent-encode any of / ? # @ %"
	for text, want := range map[string]string{
		`hunter2`:                                                                      "must be a URL",
		`hunter2://`:                                                                   "must be a URL",
		`postgres://u:hunter2/x@db.example/d`:                                          misread,
		`postgres://u:1/hunter2@db.example/d`:                                          misread,
		`postgres://u:1/hunter2@db.example:5432/d`:                                     misread,
		`postgres://u:p@hunter2/x@db.example/d`:                                        misread,
		`postgres://u:p@hunter2@db.example/d`:                                          misread,
		`postgres://u:p@hunter2#x@db.example/d`:                                        misread,
		`postgres://u:1#hunter2@db.example/d`:                                          misread,
		`postgres://u:p@db.example/d#hunter2`:                                          misread,
		`postgres://u:p@hunter2?x@db.example/d`:                                        misread,
		`postgres://u:1?hunter2@db.example/d`:                                          misread,
		`postgres://u:p@db.example/hunter2/d`:                                          misread,
		`postgres://u:p@db.example/hunter2:5432`:                                       misread,
		`postgres://u:p@db.example:5432:hunter2/d`:                                     misread,
		`postgres://u:a hunter2@db.example/d`:                                          misread,
		`postgres://u:hunter2%zz@h/d`:                                                  misread,
		`host=h user=u password=hunter2`:                                               "username",
		`postgres://u:hunter2@:5432/d`:                                                 misread,
		`mysql://u:hunter2@h/d`:                                                        "postgres:// or sqlserver://",
		`postgres://u@h/d`:                                                             "password is missing",
		`postgres://:hunter2@h/d`:                                                      "username is missing",
		`postgres://h/d?user=u&password=hunter2`:                                       misread,
		`postgres://u:hunter2@h:0/d`:                                                   "port must be a number",
		`postgres://u:hunter2@h/d?host=other`:                                          "no other parameters",
		`postgres://u:hunter2@h/d?sslmode=a&sslmode=disable`:                           "each once",
		`sqlserver://u:hunter2@h/SQLEXPRESS?database=EdFi_Admin`:                       "names an instance",
		`sqlserver://u:p@h?database=d&instance=hunter2`:                                "the instance's port instead",
		`sqlserver://u:p@h?database=d&instanceName=hunter2`:                            "the instance's port instead",
		`Server=h;Instance=hunter2;User Id=u;Password=p`:                               "Server=host,port",
		`Data Source=h;Instance Name=hunter2;UID=u;PWD=p`:                              "Server=host,port",
		`sqlserver://u:hunter2@h?database=d&server=other`:                              "no other parameters",
		`sqlserver://u:hunter2@h?database=%zz`:                                         "a query that can't be read",
		`Server=h\SQLEXPRESS;User Id=u;Password=hunter2`:                               "names an instance",
		`Server=h;Integrated Security=true;Password=hunter2`:                           "Integrated Security",
		`Driver={ODBC Driver 18 for SQL Server};Server=h;UID=u;PWD={hunter2}`:          "ODBC",
		`Provider=MSOLEDBSQL;Server=h;UID=u;PWD=hunter2`:                               "ODBC",
		`Server=h;Authentication=Active Directory Password;User Id=u;Password=hunter2`: "another Authentication",
		`Server=h;User Id=u;Password='hunter2`:                                         "quote",
		`Server=h;User Id=u`:                                                           "password is missing",
	} {
		_, err := ParseAddress(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "the secret") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
