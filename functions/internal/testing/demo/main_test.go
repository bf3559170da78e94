package main

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

func TestTheDemonstrationDropsWhatItCreatedAndNothingElse(t *testing.T) {
	server, err := pgserver.Start(t.Context(), pgserver.Options{Own: true, Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	const ours, others = "EdFi_AdminDemo_Tenant1", "EdFi_AdminDemo_Tenant2"
	conn, err := create(t.Context(), &rig.Rig{Postgres: server}, ours)
	if err != nil {
		t.Fatal(err)
	}
	if err := edfi.CreateDatabase(t.Context(), server.URL("postgres"), others); err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	for range 2 {
		if err := drop(t.Context(), server); err != nil {
			t.Error(err)
		}
	}

	admin, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	rows, err := admin.Query(t.Context(), "SELECT datname::text FROM pg_database WHERE NOT datistemplate ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if want := []string{others, "postgres"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left %q, want %q; %v", left, want, err)
	}
}
