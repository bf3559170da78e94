package main

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/relay"
)

// These tests run the function on SQL Server, where there is one. What is the same on
// both engines is tested on PostgreSQL.

// sqlServer is a database on SQL Server, with as many expired and live tokens.
type sqlServer struct {
	name string
	conn *sql.DB
	env  []string
}

func newSQLServer(t *testing.T, name string, expired, live int) sqlServer {
	t.Helper()
	address, err := edfi.SQLServer()
	if err != nil {
		t.Fatal(err)
	}
	if address == nil {
		t.Skip("SQL SERVER IS NOT TESTED: TEST_SQLSERVER_URL is not set; make test-sqlserver starts a server with Docker")
	}
	conn, err := edfi.CreateSQLServerDatabase(t.Context(), address, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		if err := edfi.DropSQLServerDatabase(context.Background(), address, name); err != nil {
			t.Error(err)
		}
	})
	if _, err := conn.Exec(`
WITH ten AS (SELECT n FROM (VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)) AS t (n)),
     number AS (SELECT a.n + 10 * b.n + 100 * c.n + 1000 * d.n AS n FROM ten AS a, ten AS b, ten AS c, ten AS d)
INSERT INTO dbo.ClientAccessTokens (Id, Expiration)
SELECT NEWID(), DATEADD(second, CASE WHEN n < @expired THEN -60 - n ELSE 600 + n END, GETUTCDATE())
FROM number WHERE n < @expired + @live`, sql.Named("expired", expired), sql.Named("live", live)); err != nil {
		t.Fatal(err)
	}
	return sqlServer{name, conn, sqlServerEnv(t, address, name)}
}

// sqlServerEnv makes a secret for the server and returns the variables that lead
// to it.
func sqlServerEnv(t *testing.T, address *url.URL, name string) []string {
	password, _ := address.User.Password()
	port, _ := strconv.Atoi(cmp.Or(address.Port(), "1433"))
	text, err := json.Marshal(map[string]any{
		"engine": "sqlserver-se", "host": address.Hostname(), "port": port,
		"username": address.User.Username(), "password": password,
	})
	if err != nil {
		t.Fatal(err)
	}
	stage.Secrets.Put("sqlserver/"+name, string(text))
	return []string{"SECRET_ID=sqlserver/" + name}
}

func (db sqlServer) expect(t *testing.T, expired, live int) {
	t.Helper()
	var e, l int
	if err := db.conn.QueryRow(`
SELECT COALESCE(SUM(CASE WHEN Expiration <= GETUTCDATE() THEN 1 ELSE 0 END), 0),
       COALESCE(SUM(CASE WHEN Expiration > GETUTCDATE() THEN 1 ELSE 0 END), 0)
FROM dbo.ClientAccessTokens`).Scan(&e, &l); err != nil {
		t.Fatal(err)
	}
	if e != expired || l != live {
		t.Errorf("%d expired and %d live rows are left, want %d and %d", e, l, expired, live)
	}
}

func TestTheFunctionPurgesSQLServer(t *testing.T) {
	names := fmt.Sprintf("EdFi_Lambda_%x_", time.Now().UnixMilli())
	db := newSQLServer(t, names+"A", 9_000, 300)
	f := start(t, append(db.env, "DATABASES="+db.name, "BATCH_SIZE=9000")...)

	reply, _ := f.invoke(t, `{"action":"dry-run"}`)
	if r := parse(t, reply).Databases[0]; r.ExpiredRows == nil || *r.ExpiredRows != 9_000 || r.Engine != "sqlserver" {
		t.Errorf("%+v", r)
	}
	db.expect(t, 9_000, 300)
	reply, lines := f.invoke(t, scheduled)
	r := parse(t, reply).Databases[0]
	if r.Status != "complete" || r.StopReason != "drained" || r.DeletedRows != 9_000 || r.Batches < 3 || !found(r, "batch-size-lowered") {
		t.Errorf("%+v", r)
	}
	if m := oneMetric(t, lines); m.DeletedRows != 9_000 || m.Engine != "sqlserver" {
		t.Errorf("%+v", m)
	}
	db.expect(t, 0, 300)

	// A pattern finds all tenants, in any letter case. The login comes from the
	// connection string that Ed-Fi keeps of one of them.
	address, _ := edfi.SQLServer() // newSQLServer has checked that it is set
	password, _ := address.User.Password()
	stage.Secrets.Put("sqlserver/"+names, fmt.Sprintf("Server=%s,%s;Database=%s;User Id=%s;Password='%s';Encrypt=True",
		address.Hostname(), cmp.Or(address.Port(), "1433"), db.name, address.User.Username(), strings.ReplaceAll(password, "'", "''")))
	newSQLServer(t, names+"B", 20, 3)
	template := newSQLServer(t, names+"template", 7, 0)
	f = start(t, "SECRET_ID=sqlserver/"+names, "DATABASES="+strings.ToLower(names)+"*,!*TEMPLATE")
	reply, _ = f.invoke(t, scheduled)
	results(t, reply, "complete", 20)
	template.expect(t, 7, 0)
	reply, _ = f.invoke(t, `{"action":"purge","databases":["`+names+`A","No_Such_Database"]}`)
	expectError(t, reply, "InvalidEvent", "No_Such_Database")
}

// An exclusion in letters of another width is one where the server takes them for the
// same; a pattern of such letters too, or the run fails.
func TestAnExclusionInOtherLettersHoldsOnSQLServer(t *testing.T) {
	names := fmt.Sprintf("EdFi_Wide_%x_", time.Now().UnixMilli())
	db, kept := newSQLServer(t, names+"A", 20, 3), newSQLServer(t, names+"Kept", 7, 0)
	var collation string
	if err := db.conn.QueryRow("SELECT CAST(SERVERPROPERTY('Collation') AS nvarchar(128))").Scan(&collation); err != nil {
		t.Fatal(err)
	}
	var one bool
	if err := db.conn.QueryRow("SELECT CASE WHEN N'Ａ' = N'A' COLLATE " + collation + " THEN 1 ELSE 0 END").Scan(&one); err != nil {
		t.Fatal(err)
	}
	wide := strings.Map(func(r rune) rune { return r - '!' + '！' }, names+"Kept")
	if one {
		reply, _ := start(t, append(db.env, "DATABASES="+names+"*,!"+wide)...).invoke(t, `{"databases":["`+kept.name+`"]}`)
		expectError(t, reply, "InvalidEvent", kept.name)
	}
	for _, exclusion := range []string{wide, string([]rune(wide)[:len(names)]) + "K*"} {
		f := start(t, append(db.env, "DATABASES="+names+"*,!"+exclusion)...)
		reply, lines := f.invoke(t, `{}`) // a slow server may not get done
		told := strings.ToLower(string(reply.Payload))
		unknown := strings.Contains(told, "write the pattern in the letters of the name")
		if !unknown && !strings.Contains(told, strings.ToLower(db.name)) || strings.Contains(told, `"`+strings.ToLower(kept.name)+`","engine"`) == one {
			t.Errorf("%s: %s\n%s", exclusion, reply.Payload, lines)
		}
		if one {
			kept.expect(t, 7, 0)
		}
	}
}

// Whenever the network falls silent, the answer comes ahead of the timeout, with little
// time for it: what a canceled statement may still take comes out of STOP_BEFORE.
func TestASilentNetworkLeavesTimeForTheAnswerOnSQLServer(t *testing.T) {
	names := fmt.Sprintf("EdFi_Silent_%x", time.Now().UnixMilli())
	db := newSQLServer(t, names, 9_000, 100)
	address, _ := edfi.SQLServer() // newSQLServer has checked that it is set
	for i, after := range []time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 1700 * time.Millisecond, 2500 * time.Millisecond} {
		link, err := relay.New(address.Host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { link.Close() })
		f := start(t, append(db.env, "DATABASES="+db.name+strings.Repeat("*", i%2), "DB_HOST=127.0.0.1", fmt.Sprintf("DB_PORT=%d", link.Port()), "DB_TLS=disable",
			"STOP_BEFORE=1s", "BATCH_SIZE=50", "PAUSE=50ms")...)
		timer := time.AfterFunc(after, link.Silence)
		reply, lines, err := f.Invoke(t.Context(), `{}`, 4*time.Second)
		timer.Stop()
		if err != nil || reply.Error == nil && parse(t, reply).Status == "complete" {
			t.Errorf("silent after %s: %v, %s %s", after, err, reply.Payload, lines)
		}
	}
}
