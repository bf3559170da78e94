package throwaway

import (
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestAServerStartsAnswersAndLeavesNothingBehind(t *testing.T) {
	p, err := Start(t.Context(), Options{Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	conn, err := pgx.Connect(t.Context(), p.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var super bool
	if err := conn.QueryRow(t.Context(), "SELECT rolsuper FROM pg_roles WHERE rolname = current_user").Scan(&super); err != nil || !super {
		t.Errorf("superuser: %t, %v", super, err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if p.dir == "" {
		return // found running, and left alone
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there", p.dir)
	}
	if _, err := pgx.Connect(t.Context(), p.URL("postgres")); err == nil {
		t.Error("it still answers")
	}
}
