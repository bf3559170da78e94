package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"log/slog"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// texts are what servers, drivers and people write, and what must be left of it. In
// the second column ~ stands for the mark. A text without one must be left as it is.
var texts = [][2]string{
	// Lists of ADO.NET, Npgsql and ODBC: a value ends at the semicolon, or with its quotes.
	{`Server=h;User Id=u;Password=hunter2;Encrypt=True`, `Server=h;User Id=u;Password=~;Encrypt=True`},
	{`Password=a hunter2;Server=h`, `Password=~;Server=h`},
	{`Server=h; Password = a=hunter2, b ;Database=d`, `Server=h; Password = ~;Database=d`},
	{`Server=h;Pwd=a hunter2`, `Server=h;Pwd=~`},
	{`Server=h;Pwd='a;hunter2';Database=d`, `Server=h;Pwd=~;Database=d`},
	{`Server=h;Pwd='a''hunter2;';Database=d`, `Server=h;Pwd=~;Database=d`},
	{`Server=h;Password="a"";hunter2";Database=d`, `Server=h;Password=~;Database=d`},
	{`Driver={SQL Server};Pwd={a};hunter2}};x};Server=h`, `Driver={SQL Server};Pwd=~;hunter2}};x};Server=h`}, // hunter2 is no part of it
	{`Driver={SQL Server};UID=u;PWD={a}};hunter2};Server=h`, `Driver={SQL Server};UID=u;PWD=~;Server=h`},
	{`Host=h;SSL Password=hunter2;Port=1`, `Host=h;SSL Password=~;Port=1`},
	{`AccountName=a;AccountKey=hunter2==;EndpointSuffix=e`, `AccountName=a;AccountKey=~;EndpointSuffix=e`},
	{`SharedAccessKey=hunter2;x=1`, `SharedAccessKey=~;x=1`},
	{`{"ConnectionString":"Server=h;Password=a hunter2","port":1}`, `{"ConnectionString":"Server=h;Password=~","port":1}`},
	{`{"cs":"password=\"a hunter2\";host=h"}`, `{"cs":"password=~;host=h"}`},
	{`<add connectionString="Server=h; password= hunter2" provider="x" />`, `<add connectionString="Server=h; password= ~" provider="x" />`},
	{`<add connectionString="Server=h;Password=&quot;a;hunter2&quot;;Database=d" />`, `<add connectionString="Server=h;Password=~;Database=d" />`},
	{`Server=h;Password=a&amp;hunter2;Database=d`, `Server=h;Password=~;Database=d`},
	{`?user=joe&amp;password=hunter2&amp;sslmode=require`, `?user=joe&amp;password=~&amp;sslmode=require`},
	{`Server=h;Password=a&b;Database=d`, `Server=h;Password=~;Database=d`},
	// Lists of libpq: a value ends at the blank.
	{`host=h password=hunter2 dbname=d`, `host=h password=~ dbname=d`},
	{`host=h password=a\ hunter2 dbname=d`, `host=h password=~ dbname=d`},
	{`host=h password='a hunter2' dbname=d`, `host=h password=~ dbname=d`},
	{`host=h password='a \' hunter2' dbname=d`, `host=h password=~ dbname=d`},
	{`password=hunter2 dbname=d; no route to host`, `password=~ dbname=d; no route to host`},
	{`connect "host=h password=hunter2" failed; try again`, `connect "host=h password=~" failed; try again`},
	{`sslpassword=hunter2 host=h`, `sslpassword=~ host=h`},
	{`password='a hunter2`, `password=~`}, // never closed
	{"password `a hunter2", "password ~"},
	{"the password "},
	// Variables, flags and statements.
	{`PGPASSWORD=hunter2 psql -h h`, `PGPASSWORD=~ psql -h h`},
	{`$env:PGPASSWORD = "a hunter2"; psql`, `$env:PGPASSWORD = ~; psql`},
	{`psql --password hunter2 --host h`, `psql --password ~ --host h`},
	{`tool -password 'a hunter2' -h h`, `tool -password ~ -h h`},
	{`tool --api-key=hunter2 --host h`, `tool --api-key=~ --host h`},
	{`ALTER ROLE joe PASSWORD 'a '' hunter2' LOGIN`, `ALTER ROLE joe PASSWORD ~ LOGIN`},
	{`ALTER LOGIN joe WITH PASSWORD = N'a "hunter2' UNLOCK`, `ALTER LOGIN joe WITH PASSWORD = ~ UNLOCK`},
	{`ALTER ROLE joe PASSWORD E'a \\hunter2'`, `ALTER ROLE joe PASSWORD ~`},
	{`ALTER ROLE joe PASSWORD 'a "hunter2`, `ALTER ROLE joe PASSWORD ~`},
	{`ALTER ROLE joe PASSWORD $$a hunter2$$ LOGIN`, `ALTER ROLE joe PASSWORD ~ LOGIN`},
	{`ALTER ROLE joe PASSWORD $x$a $$ hunter2`, `ALTER ROLE joe PASSWORD ~`},
	{`DB_PASS=hunter2 DbPass=hunter2 run`, `DB_PASS=~ DbPass=~ run`},
	{`tool -Password hunter2; next`, `tool -Password ~; next`},
	{`tool /password:hunter2 /h`, `tool /password:~ /h`},
	{`MSSQL_SA_PASSWORD=hunter2 MY_SECRET=hunter2 export`, `MSSQL_SA_PASSWORD=~ MY_SECRET=~ export`},
	{`sqlcmd -S h -U sa -P hunter2 -d EdFi_Admin`, `sqlcmd -S h -U sa -P ~ -d EdFi_Admin`},
	{`mysql -u root -phunter2 -h h EdFi_Admin`, `mysql -u root -p~ -h h EdFi_Admin`},
	{`mysqldump.exe -h h -p'a hunter2' d`, `mysqldump.exe -h h -p~ d`},
	{`mariadb-admin "-phunter2" ping`, `mariadb-admin "-p~" ping`},
	{`mysql -u joe -passwd -h h; psql --password -h h`, `mysql -u joe -p~ -h h; psql --password -h h`},
	{`tool -ujoe -phunter2 -v`, `tool -ujoe -p~ -v`},
	{`sqlcmd -Usa -Phunter2 -Q "SELECT 1"`, `sqlcmd -Usa -P~ -Q "SELECT 1"`},
	{`sshpass -p hunter2 ssh h; redis-cli -h h -a hunter2 PING`, `sshpass -p ~ ssh h; redis-cli -h h -a ~ PING`},
	{`ldapsearch -D cn=joe -w hunter2 -b dc=x; curl -u joe:hunter2 https://h/x`, `ldapsearch -D cn=joe -w ~ -b dc=x; curl -u joe:~ https://h/x`},
	{`mongodump -u joe -p hunter2 --host h`, `mongodump -u joe -p ~ --host h`},
	{`mysql -p -h h; mysql -u joe -P 3306 d; psql -p5432 -U joe; find . -print0; ssh -p22 h; docker run -p8080:80 x`},
	{`-print0 -pass1 -parallel4 -pbkdf2 -pkcs12 -path1/x -port5432 -p10m -p8080:80/tcp -python3 -pl1 -p99 -partition-2`},
	{`pg_restore -p 5432 -j4; tool -parallel=4 -port=5; mysql: -p is missing`},
	{`key "x" is no key; secret 'edfi' not found; the token "," is unexpected`},
	// JSON, YAML, XML and headers.
	{`<Password>a hunter2</Password>`, `<Password>~</Password>`},
	{`{'password' : 'hunter2', 'port': 1}`, `{'password' : ~, 'port': 1}`},
	{`'password' => 'hunter2'`, `'password' => ~`},
	{`passphrase "open hunter2" is no good`, `passphrase ~ is no good`},
	{`secret_key = hunter2, accessKey: hunter2`, `secret_key = ~, accessKey: ~`},
	{`{"username": "u", "password": "hunter2"}`, `{"username": "u", "password": ~}`},
	{`{"password":1234,"port":1}`, `{"password":~,"port":1}`},
	{`{"client_secret": "a\"hunter2", "x": 1}`, `{"client_secret": ~, "x": 1}`},
	{`{"apiKey":"hunter2","access_token":"hunter2","passphrase":"hunter2"}`, `{"apiKey":~,"access_token":~,"passphrase":~}`},
	{`{"secret":{"a":["hunter2"]},"x":1}`, `{"secret":~,"x":1}`},
	{`password: hunter2`, `password: ~`},
	{`x-api-key: hunter2`, `x-api-key: ~`},
	{`token: hunter2, next`, `token: ~, next`},
	{`Authorization: Bearer hunter2.a-b_c`, `Authorization: Bearer ~`},
	{`{"Authorization": "Bearer hunter2"}`, `{"Authorization": "Bearer ~"}`},
	{`Authorization: Bearer "hunter2" refused`, `Authorization: Bearer "~" refused`},
	{`?authorization=Bearer+hunter2&x=1`, `?authorization=Bearer+~&x=1`},
	{`authorization%3DBearer%20hunter2 x`, `authorization%3DBearer%20~ x`},
	{`bearer: hunter2`, `bearer: ~`},
	{"-----BEGIN RSA PRIVATE KEY-----\nhunter2\nhunter2\n-----END RSA PRIVATE KEY----- is no good", `~ is no good`},
	{"it has -----BEGIN PRIVATE KEY-----\nhunter2", `it has ~`},
	{`bearer hunter2 is no good`, `bearer ~ is no good`},
	{`Authorization: Basic aHVudGVyMg== refused`, `Authorization: Basic ~ refused`},
	{"{\n  \"password\":\n    \"hunter2\",\n  \"port\": 1\n}", "{\n  \"password\":\n    ~,\n  \"port\": 1\n}"},
	{"user: joe\npassword: a hunter2 # it is\nhost: h", "user: joe\npassword: ~ # it is\nhost: h"},
	{"- password: |\n    a\n    hunter2\n- host: h", "- password: ~\n- host: h"},
	{"db_password: >-\n  hunter2\n\n  hunter2\nhost: h", "db_password: ~\nhost: h"},
	{"password: !!str a hunter2\nhost: h", "password: ~\nhost: h"},
	{"password:\n  hunter2\nhost: h", "password:~\nhost: h"},
	{`{"name":"DB_PASSWORD","value":"hunter2"},{"name":"x","value":"1"}`, `{"name":"DB_PASSWORD","value":~},{"name":"x","value":"1"}`},
	{`{"Key": "api-token", "Value": "hunter2"}`, `{"Key": "api-token", "Value": ~}`},
	{"- name: DB_PASSWORD\n  value: hunter2\n- name: x", "- name: DB_PASSWORD\n  value: ~\n- name: x"},
	{`<add key="Password" value="hunter2"/>`, `<add key="Password" value=~/>`},
	{`<password value='hunter2' x="1"/>`, `<password value=~ x="1"/>`},
	{`<wsse:Password Type="#Text">a hunter2</wsse:Password>`, `<wsse:Password Type="#Text">~</wsse:Password>`},
	{`<Secret><![CDATA[a <hunter2>]]></Secret>`, `<Secret>~</Secret>`},
	{`{User:joe Password:a hunter2 Host:h}`, `{User:joe Password:~ Host:h}`},
	{`map[password:a hunter2 user:joe] map[x:1 secret:hunter2]`, `map[password:~ user:joe] map[x:1 secret:~]`},
	{`["tool","--password","hunter2","-v"] ['--secret', 'hunter2'] [--token, hunter2, -v]`, `["tool","--password",~,"-v"] ['--secret', ~] [--token, ~, -v]`},
	{`Authorization: hunter2`, `Authorization: ~`},
	{`Authorization: Custom hunter2`, `Authorization: Custom ~`},
	{`map[Authorization:[Basic aHVudGVyMg==] Host:[h]]`, `map[Authorization:[Basic ~] Host:[h]]`},
	{`Authorization=Basic%20aHVudGVyMg`, `Authorization=Basic%20~`},
	{"Cookie: session=hunter2; x=1\nHost: h", "Cookie: ~\nHost: h"},
	{`Set-Cookie: sid=hunter2; Path=/`, `Set-Cookie: ~`},
	{"password\u00a0=\u00a0hunter2 host=h", "password\u00a0=\u00a0~ host=h"},
	{"password\uff1ahunter2, password\uff1dhunter2 x", "password\uff1a~, password\uff1d~ x"},
	{"the password `a hunter2` is wrong", "the password ~ is wrong"},
	{`userpass=hunter2 dbpass=hunter2 pw=hunter2 --pw hunter2 -v`, `userpass=~ dbpass=~ pw=~ --pw ~ -v`},
	// Statements that hold others, password files.
	{`dblink('host=h user=joe password=''a hunter2'' dbname=d')`, `dblink('host=h user=joe password=~ dbname=d')`},
	{`SELECT set_config('app.password', 'a hunter2', false)`, `SELECT set_config('app.password', ~, false)`},
	{`SET app.secret TO 'a hunter2'; SET SESSION x.token TO hunter2;`, `SET app.secret TO ~; SET SESSION x.token TO ~;`},
	{`CREATE USER joe IDENTIFIED BY 'a '' hunter2' x; IDENTIFIED BY "hunter2"`, `CREATE USER joe IDENTIFIED BY ~ x; IDENTIFIED BY ~`},
	{`verifier SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:aHVudGVyMg== is`, `verifier ~ is`},
	{`db.example:5432:d:joe:hunter2`, `db.example:5432:d:joe:~`},
	{`*:*:*:joe:hunter2`, `*:*:*:joe:~`},
	{`machine h login joe password hunter2 port 1`, `machine h login joe password ~ port 1`},
	{`?next=postgres%3A%2F%2Fjoe%3Ahunter2%40db%3A5432%2Fd&x=1`, `?next=postgres%3A%2F%2F~%40db%3A5432%2Fd&x=1`},
	// URLs.
	{`connect postgres://joe:hunter2@db:5432/x failed`, `connect postgres://~@db:5432/x failed`},
	{`postgres://joe:a/hunter2?#@@db:5432/x`, `postgres://~@db:5432/x`},
	{`postgres://joe:a hunter2@db:5432/x is no good`, `postgres://~@db:5432/x is no good`},
	{`sqlserver://my joe:12 hunter2@db`, `sqlserver://~@db`},
	{`postgres://joe:hunter2`, `postgres://~`},
	{`postgres://db:5432/x, postgres://[::1]:5432`},
	{`jdbc:sqlserver://db;user=joe;password=a hunter2;x=1`, `jdbc:sqlserver://db;user=joe;password=~;x=1`},
	{`https://example.org/?next=%2Fx%3Fpassword%3Dhunter2%26y%3D1`, `https://example.org/?next=%2Fx%3Fpassword%3D~%26y%3D1`},
	{`https://example.org/?next=Password%3Dhun%40ter2%3BServer%3Dh&x=1`, `https://example.org/?next=Password%3D~%3BServer%3Dh&x=1`},
	{`?next=password%3Dhun%zzter2%26y%3D1`, `?next=password%3D~%26y%3D1`},
	{`?secret=%7B%22x%22%3A1%2C%22password%22%3A%22hunter2%22%7D`, `?secret=~`},
	{`?q=%7B%22password%22%3A%22hunter2%22%2C%22port%22%3A1%7D`, `?q=%7B%22password%22%3A%22~%22%2C%22port%22%3A1%7D`},
	{`//joe:hunter2@db/x is no good`, `//~@db/x is no good`},
	{`joe@server:hunter2@db:5432/x is no good`, `~@db:5432/x is no good`},
	{`postgresql://joe:h@nter2 hunter2@db/x, and go on`, `postgresql://~@db/x, and go on`},
	{`postgres://joe@db/x`, `postgres://~@db/x`},
	{`two: postgres://joe:hunter2@a/x and postgres://joe:hunter2@b/x`, `two: postgres://~@a/x and postgres://~@b/x`},
	{`postgres://db/x?user=joe&password=hunter2&sslmode=require`, `postgres://db/x?user=joe&password=~&sslmode=require`},
	{`joe:hunter2@db:5432`, `~@db:5432`},
	{`to joe:a hunter2@db:5432 or not`, `to ~@db:5432 or not`},
	{`user "joe:hunter2@db" is unknown`, `user "~@db" is unknown`},
	// Tokens, in each form of a UUID.
	{`cannot delete 6F9619FF-8B86-D011-B42D-00CF4FC964FF now`, `cannot delete ~ now`},
	{`{6f9619ff-8b86-d011-b42d-00cf4fc964ff}`, `{~}`},
	{`(6f9619ff8b86d011b42d00cf4fc964ff)`, `(~)`},
	{`urn:uuid:6f9619ff-8b86-d011-b42d-00cf4fc964ff`, `urn:uuid:~`},
	{`6f96-19ff-8b86-d011-b42d-00cf-4fc9-64ff`, `~`},
	{`6f9619ff%2D8b86%2dd011%2Db42d%2D00cf4fc964ff`, `~`},
	{`0xFF19966F868B11D0B42D00CF4FC964FF`, `0xFF19966F868B11D0B42D00CF4FC964FF`[:2] + `~`},
	{`\x6f9619ff8b86d011b42d00cf4fc964ff`, `\x~`},
	{`{0x6f9619ff,0x8b86,0xd011,{0xb4,0x2d,0x00,0xcf,0x4f,0xc9,0x64,0xff}}`, `{~}}`},
	{`/xmWb4aLEdC0LQDPT8lk/w== is gone`, `~ is gone`},
	{`6f9619ff_8b86_d011_b42d_00cf4fc964ff`, `~`},
	{`6f9619ff 8b86 d011 b42d 00cf4fc964ff is gone`, `~ is gone`},
	{`at 6f9619ff:8b86:d011:b42d:00cf4fc964ff now`, `at ~ now`},
	{`6F:96:19:FF:8B:86:D0:11:B4:2D:00:CF:4F:C9:64:FF`, `~`},
	{`6f 96 19 ff 8b 86 d0 11 b4 2d 00 cf 4f c9 64 ff is it`, `~ is it`},
	{`0x6f, 0x96, 0x19, 0xff, 0x8b, 0x86, 0xd0, 0x11, 0xb4, 0x2d, 0x00, 0xcf, 0x4f, 0xc9, 0x64, 0xff`, `~`},
	{`a dump: 6f96 19ff 8b86 d011 b42d 00cf 4fc9 64ff`, `a dump: ~`},
	{`6f96:19ff:8b86:d011:b42d:00cf:4fc9:64ff`, `~`},
	{`6f9619ff%208b86%20d011%20b42d%2000cf4fc964ff`, `~`},
	{`key [111 150 25 255 139 134 208 17 180 45 0 207 79 201 100 255] is gone`, `key ~ is gone`},
	{`6f9619ff/8b86/d011/b42d/00cf4fc964ff, 6f;96;19;ff;8b;86;d0;11;b4;2d;00;cf;4f;c9;64;ff`, `~, ~`},
	{"6f9619ff\u20138b86\u2013d011\u2013b42d\u201300cf4fc964ff", `~`},
	{`6f9619ff - 8b86 - d011 - b42d - 00cf4fc964ff`, `~`},
	{`eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl is over`, `~ is over`},
	// What only looks like it.
	{`permission denied for table clientaccesstokens (SQLSTATE 42501) at 2026-11-23T14:00:00Z, user "purge": check user name and password in the secret`},
	{`password authentication failed for user "purge"`},
	{`duplicate key value violates unique constraint "pk_clientaccesstokens"`},
	{`Key (apiclient_apiclientid)=(5) is not present in table "apiclients"`},
	{`authorization: permission denied; Authorization: required, cookie: none, login failed password expired`},
	{`https://h/?next=https%3A%2F%2Fa%2Fb%3Fmail%3Djoe%40example.org, identified by its number, 'identified by'`},
	{"about the secret:\n  it must be there\nthe key:\n  none"},
	{"invalid token: unexpected end\nline: 5\nhost: h"},
	{`{"name":"token","id":5}, the key value: 5, "keys","values", 'username', 'password', 'host'`},
	{`main.go:5432:17: undefined: x, mac 02:42:ac:11:00:02, [secret 5], {a:1 monkey:2}, set the token to 5`},
	{`&amp; &lt;x&gt; %2525, 1 2 3 4 5 6 7 8, aa bb cc dd`},
	{`the primary key = 5, foreign key: 6, primary_key=7`},
	{`the secret: host must be the name of a server`},
	{`invalid token: unexpected end of input`},
	{`no key: value expected, and no secret: none`},
	{`monkey=1; turkey: 2, tokens=3 keyboard=4 keys: 5 passwords=6`},
	{`bearer tokens from the admin database; Bearer authentication; WWW-Authenticate: Bearer realm="x"`},
	{`arn:aws:secretsmanager:us-east-1:000000000000:secret:edfi/admin-a1B2c3`},
	{`see https://docs.example.org/x: mail admin@example.org`},
	{`https://example.org and write to: admin@example.org`},
	{`mailto:admin@example.org at 12:30, or admin@example.org`},
	{`dial tcp 10.0.0.1:5432: connect: connection refused, [::1]:5432`},
	{`Login failed for user 'purge'. Reason: the password is too old; token-based server access validation failed`},
	{`flag provided but not defined: -password`},
	{`deadlock detected: process 4711 waits for ShareLock on transaction 8254; blocked by process 4712`},
	{`bypass=1, compass: 2, trespass=3; the pass is over`},
	{`scp a@b:/x c@d:/y and e@f:5432, g@h:5432; // a comment: no@one`},
	{`the cost is $5, a password costs $6; &quot;key&quot; & more;`},
	{`no pg_hba.conf entry for host "2600:1f18:1234:5600:abcd:1234:5678:9abc", dial tcp [fd12:3456:789a:1234:5678:9abc:def0:1234]:5432, fe80:0000:0000:0000:0202:b3ff:fe1e:8329`},
	{`years 2019 2020 2021 2022 2023 2024 2025 2026, pids 12 34 56 78 90 12 34 56 78 90 12 34 56 78 90 12 34`},
	{`SHA1 Fingerprint=12:F0:C6:AB:44:4F:3C:69:D1:B2:33:91:67:8E:73:40:FF:41:EA:2B, mac 02:42:ac:11:00:02`},
	{`commits 9f463d4a 1464684a deadbeef 0badcafe; at 10:20:30 on 2026-11-27 10:20:30.123456+00, WAL 0000000100000000000000AB`},
	{`LSN 0/16B3748, commit 9f463d4, sha 1464684aa, error 0x80131904`},
}

func TestTextTakesOutSecretsAndLeavesTheRest(t *testing.T) {
	for _, c := range texts {
		in, want := c[0], strings.ReplaceAll(c[1], "~", Mark)
		if want == "" {
			want = in
		}
		if out := Text(in); out != want {
			t.Errorf("%s\ngives\n%s, not\n%s", in, out, want)
		}
		if again := Text(Text(in)); again != Text(in) {
			t.Errorf("%s: twice gives %s", in, again)
		}
		// The same in the middle of a sentence, where it does not run to the end.
		if out := Text("it says: " + in); !strings.Contains(in, "=") && !strings.Contains(in, "://") && out != "it says: "+want {
			t.Errorf("in a sentence %s gives %s", in, out)
		}
	}
}

func TestTextKnowsASecretInEveryForm(t *testing.T) {
	const secret = `a/?#@%"'\;= é hunter2&`
	inJSON, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	for form, in := range map[string]string{
		"as it is":                secret,
		"in capitals":             strings.ToUpper(secret),
		"in a query":              url.QueryEscape(secret),
		"in a path":               strings.ToLower(url.PathEscape(secret)),
		"in Go":                   strconv.Quote(secret),
		"in ASCII":                strconv.QuoteToASCII(secret),
		"in JSON":                 string(inJSON),
		"in JSON in JSON":         strconv.Quote(string(inJSON)),
		"in a string of SQL":      `'` + strings.ReplaceAll(secret, `'`, `''`) + `'`,
		"in a name of SQL":        `"` + strings.ReplaceAll(secret, `"`, `""`) + `"`,
		"by quote_literal":        `E'` + strings.NewReplacer(`'`, `''`, `\`, `\\`).Replace(secret) + `'`,
		"in HTML":                 html.EscapeString(secret),
		"in a shell":              `'` + strings.ReplaceAll(secret, `'`, `'\''`) + `'`,
		"in a query in a query":   url.QueryEscape(url.QueryEscape(secret)),
		"in octal beyond ASCII":   strings.NewReplacer("é", `\303\251`, `\`, `\\`).Replace(secret),
		"in bytes beyond ASCII":   strings.NewReplacer("é", `\xc3\xa9`, `\`, `\\`).Replace(secret),
		"with a blank of editors": strings.ReplaceAll(secret, " ", "\u00a0"),
		"in a connection string":  `pass '` + strings.NewReplacer(`'`, `\'`, `\`, `\\`).Replace(secret) + `'`,
	} {
		if out := Text("<"+in+">", secret); strings.Contains(strings.ToLower(out), "hunter2") || !strings.HasPrefix(out, "<") || !strings.HasSuffix(out, ">") {
			t.Errorf("%s: %s gives %s", form, in, out)
		}
	}
}

func TestSecretPrintsAsRedactedUnderEveryVerb(t *testing.T) {
	const value = "hunter2"
	s := NewSecret(value)
	type outer struct {
		Public  Secret
		private Secret
		pointer *Secret
	}
	o := outer{s, s, &s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%T", "%p", "%b", "%e"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+"\n", s, o, []any{&o, s})
	}
	if err := json.NewEncoder(&out).Encode(map[string]any{"s": s, "o": o}); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "s", s, "o", o)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "s", s, "o", o)
	for _, leak := range []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value)} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("leaks %q:\n%s", leak, out.String())
		}
	}
	if s.Reveal() != value || (Secret{}).Reveal() != "" {
		t.Error("Reveal does not return the secret")
	}
}

func TestLoginTakesOutTheUserWhereItIsAWord(t *testing.T) {
	user, password := NewSecret("edfi"), NewSecret(`p/w"@`)
	for in, want := range map[string]string{
		`role "edfi" of edfi_admin`:        `role "[redacted]" of edfi_admin`,
		`edfi edfi, dba.edfi`:              `[redacted] [redacted], dba.[redacted]`,
		`url p%2Fw%22@, query p%2Fw%22%40`: `url [redacted], query [redacted]`,
		`quoted "p/w\"@"`:                  `quoted "[redacted]"`,
		`capitals EDFI, P/W"@`:             `capitals [redacted], [redacted]`,
	} {
		if out := Login(in, user, password); out != want {
			t.Errorf("%s: %s, want %s", in, out, want)
		}
	}
}

func TestTextKnowsASecretEncoded(t *testing.T) {
	const secret = "hunter2 is it" // long enough to be looked for within words
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	var wide []byte
	for _, c := range []byte(secret) {
		wide = append(wide, c, 0)
	}
	for form, in := range map[string]string{
		"in base64":                      encode(secret),
		"in base64 with one byte before": encode("x" + secret + "y"),
		"in base64 of a login":           encode("joe:" + secret),
		"in base64 of a list":            encode("Server=h;Password=" + secret + ";Database=d"),
		"in base64 for URLs":             base64.RawURLEncoding.EncodeToString([]byte(">?" + secret + ">?")),
		"in base64 without padding":      strings.TrimRight(encode(secret), "="),
		"in base64 of UTF-16":            encode(string(wide)),
		"in hexadecimal":                 hex.EncodeToString([]byte(secret)),
		"in SQL Server's binary":         "0x" + strings.ToUpper(hex.EncodeToString(wide)),
		"each byte percent-encoded":      everyByte(secret),
		"glued to words":                 "x" + secret + "x",
		"a dump":                         fmt.Sprintf("% x", secret),
		"bytes of Go":                    numbersOf(secret),
		"bytes of a program":             strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(secret)), "[]byte{"), "}"),
		"with colons":                    "68:75:6E:74:65:72:32:20:69:73:20:69:74",
		"octal":                          `\150\165\156\164\145\162\062\040\151\163\040\151\164`,
		"percent-encoded twice":          strings.ReplaceAll(everyByte(secret), "%", "%25"),
		"decimal entities":               entitiesOf("&#%d;", secret),
		"hexadecimal entities":           entitiesOf("&#x%X;", secret),
	} {
		if out := Text("left "+in+" left", secret); !strings.Contains(out, Mark) || !strings.HasPrefix(out, "left ") || !strings.HasSuffix(out, " left") || strings.Contains(out, in) {
			t.Errorf("%s: %s gives %s", form, in, out)
		}
	}
}

// numbersOf is how Go prints the bytes of s.
func numbersOf(s string) string { return fmt.Sprintf("%d", []byte(s)) }

func entitiesOf(format, s string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, format, r)
	}
	return b.String()
}

// Base64 has characters that URLs have a form for.
func TestTextKnowsBase64InAURL(t *testing.T) {
	const secret = "~~~???>>>ÿÿ" // fn5+Pz8/Pj4+w7/Dvw
	for _, code := range []string{base64.StdEncoding.EncodeToString([]byte(secret)), base64.RawStdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret))} {
		for _, in := range []string{code, url.QueryEscape(code), strings.NewReplacer("+", "%2b", "/", "%2f").Replace(code)} {
			if out := Text("x="+in+"&y=1", secret); out != "x="+Mark+"&y=1" && out != "x="+Mark+"%3D%3D&y=1" {
				t.Errorf("%s gives %s", in, out)
			}
		}
	}
}

func TestAShortSecretIsTakenOutAsAWordAlone(t *testing.T) {
	for in, want := range map[string]string{
		"the password is pass":                    "the password is [redacted]",
		`pass, "pass" (PASS) \npass \u0026pass`:   `[redacted], "[redacted]" ([redacted]) \n[redacted] \u0026[redacted]`,
		"compass passing surpass":                 "compass passing surpass",
		"cGFzcw== and cGFzcw, Basic am9lOnBhc3M=": "[redacted] and [redacted], Basic [redacted]",
		"0x70617373, 7061737370617373":            "0x[redacted], 7061737370617373",
		"70 61 73 73, [112 97 115 115], 112":      "[redacted], [[redacted]], 112",
	} {
		if out := Login(in, NewSecret("joe"), NewSecret("pass")); out != want {
			t.Errorf("%s gives %s, not %s", in, out, want)
		}
	}
}

func TestALongTextIsCut(t *testing.T) {
	for name, in := range map[string]string{
		"words":             strings.Repeat("it is so ", 30_000),
		"names of secrets":  strings.Repeat("password=a ", 20_000),
		"colons":            strings.Repeat("a:b", 80_000),
		"users":             strings.Repeat("a:b@", 60_000),
		"schemes":           strings.Repeat("a://b ", 40_000),
		"quotes":            strings.Repeat(`password='\`, 30_000),
		"one secret":        "password=" + strings.Repeat("hunter2", 900_000),
		"a URL without end": "postgres://joe:" + strings.Repeat("hunter2", 900_000),
		"beyond ASCII":      strings.Repeat("é", 100_000),
		"slashes":           strings.Repeat(`\`, 300_000),
	} {
		out := Text(in, `a secret with "quotes" and \slashes`)
		if len(out) > mostText || strings.Contains(out, "hunter2") || !utf8.ValidString(out) {
			t.Errorf("%s: %d bytes, %.100s", name, len(out), out)
		}
		if quoted := Quote(in); len(quoted) > 4*mostQuote || strings.Contains(quoted, "hunter2") {
			t.Errorf("%s: %s", name, quoted)
		}
	}
}

// A pattern made of such a password took half a gigabyte.
func TestALongPasswordCostsLittleMemory(t *testing.T) {
	for name, password := range map[string]string{
		"letters": strings.Repeat("Ab3", 22_000),
		"quotes":  strings.Repeat(`'\"%`, 16_000),
	} {
		text := "it says: " + password + " and " + base64.StdEncoding.EncodeToString([]byte(password))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		out := Login(text, NewSecret("joe"), NewSecret(password))
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 { // 8 MB with the race detector, more or less
			t.Errorf("%s: %d MB", name, used>>20)
		}
		if out != "it says: [redacted] and [redacted]" {
			t.Errorf("%s: %.200s", name, out)
		}
	}
}

func TestAQuotedWordShowsItsControlCharacters(t *testing.T) {
	for in, want := range map[string]string{
		"EdFi_Admin":              `"EdFi_Admin"`,
		"a\x1b[2Jb\n":             `"a\x1b[2Jb\n"`,
		"host=h password=hunter2": `"host=h password=[redacted]"`,
	} {
		if out := Quote(in); out != want {
			t.Errorf("%q gives %s, not %s", in, out, want)
		}
	}
}
