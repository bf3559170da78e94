package main

import (
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/testing/edfi"
)

func TestSeveralTablesHaveOneMetricLineAndAResultEach(t *testing.T) {
	t.Parallel()
	db := newDatabase(t, 100, 5)
	if err := edfi.CreateOtherTables(t.Context(), db.conn); err != nil {
		t.Fatal(err)
	}
	if _, err := db.conn.Exec(t.Context(), `
INSERT INTO adminapi.tokens (expirationdate) SELECT now() - interval '2 d' FROM generate_series(1, 30);
INSERT INTO dbo.clientaccesstokenlogs (accesstime) SELECT now() - n * interval '1 d' FROM unnest(ARRAY[1, 29, 33, 100]) AS n`); err != nil {
		t.Fatal(err)
	}
	f := db.start(t, "TABLES=ClientAccessTokens, adminapi.Tokens,ClientAccessTokenLogs", "LOG_RETENTION=720h")
	reply, lines := f.invoke(t, `{"action":"dry-run"}`)
	if r := db.result(t, reply); r.ExpiredRows == nil || *r.ExpiredRows != 132 || len(r.Tables) != 3 {
		t.Errorf("%+v", r)
	}
	if m := oneMetric(t, lines); m.OldestExpiredAge == 0 {
		t.Errorf("%+v", m)
	}

	// An event narrows.
	for _, event := range []string{`{"tables":["dmscs.OpenIddictToken"]}`, `{"tables":["Users"]}`} {
		reply, lines := f.invoke(t, event)
		expectError(t, reply, "InvalidEvent", "tables")
		noMetric(t, lines)
	}
	reply, _ = f.invoke(t, `{"tables":["adminapi.Tokens"]}`)
	if r := db.result(t, reply); r.Status != "complete" || r.DeletedRows != 30 || r.Tables != nil {
		t.Errorf("%+v", r)
	}
	db.expect(t, 100, 5)

	reply, lines = f.invoke(t, `{}`)
	r := db.result(t, reply)
	if r.Status != "complete" || r.DeletedRows != 102 || len(r.Tables) != 3 || r.Cutoff == nil {
		t.Errorf("%+v", r)
	}
	for i, want := range []struct {
		table string
		rows  int64
	}{{"ClientAccessTokens", 100}, {"adminapi.Tokens", 0}, {"ClientAccessTokenLogs", 2}} {
		if got := r.Tables[i]; got.Table != want.table || got.DeletedRows != want.rows || got.Status != "complete" || got.Cutoff == nil {
			t.Errorf("%+v", got)
		}
	}
	if m := oneMetric(t, lines); m.DeletedRows != 102 || m.OldestExpiredAge != 0 || m.Incomplete != 0 {
		t.Errorf("%+v", m)
	}
	if !strings.Contains(string(reply.Payload), `"tables":[{`) {
		t.Errorf("%s", reply.Payload)
	}
}
