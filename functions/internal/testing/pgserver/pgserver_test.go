package pgserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// The test binary is also a process that dies without a Stop.
func TestMain(m *testing.M) {
	if os.Getenv("THROWAWAY_DIE") == "" {
		os.Exit(m.Run())
	}
	p, err := Start(context.Background(), Options{})
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\n%s\n", p.URL("postgres"), p.dir)
	os.Stdout.Close()
	select {}
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	o.Progress = func(s string) { t.Log(s) }
	p, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func ask(t *testing.T, p *Server, sql string) (answer string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestAServerStartsAnswersAndLeavesNothingBehind(t *testing.T) {
	p := start(t, Options{Settings: map[string]string{"fsync": "off", "application_name": `it's a \ test`}})
	if got := ask(t, p, "SELECT rolsuper::text FROM pg_roles WHERE rolname = current_user"); got != "true" {
		t.Errorf("superuser: %s", got)
	}
	if p.given != nil {
		return // found running: neither ours to set nor to stop
	}
	for name, want := range map[string]string{
		"fsync": "off", "application_name": `it's a \ test`, "server_encoding": "UTF8",
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "",
	} {
		if got := ask(t, p, "SELECT reset_val FROM pg_settings WHERE name = '"+name+"'"); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for range 2 {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there", p.dir)
	}
	if _, err := pgx.Connect(t.Context(), p.URL("postgres")); err == nil {
		t.Error("it still answers")
	}
	if err := p.Restart(t.Context()); err == nil {
		t.Error("it restarted after its end")
	}
}

func TestARestartKeepsPortAndData(t *testing.T) {
	p := start(t, Options{})
	if p.given != nil {
		t.Skip("not ours to restart")
	}
	first := ask(t, p, "SELECT pg_postmaster_start_time()::text")
	conn, err := pgx.Connect(t.Context(), p.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 'yes' AS answer"); err != nil {
		t.Fatal(err)
	}
	if err := p.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, p, "SELECT answer FROM kept"); got != "yes" {
		t.Errorf("kept: %q", got)
	}
	if ask(t, p, "SELECT pg_postmaster_start_time()::text") == first {
		t.Error("it is the same server")
	}
}

func TestAServerDiesWithItsProcess(t *testing.T) {
	if runtime.GOOS != "linux" || os.Getenv("DATABASE_URL") != "" {
		t.Skip("needs Linux and a server of its own")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), "THROWAWAY_DIE=1"), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var address, dir string
	_, err = fmt.Fscanln(out, &address)
	if err == nil {
		_, err = fmt.Fscanln(out, &dir)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for range 100 {
		conn, err := pgx.Connect(t.Context(), address)
		if err != nil {
			return
		}
		conn.Close(t.Context())
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("it still answers")
}

func TestAWrongSettingIsAnErrorThatQuotesTheLog(t *testing.T) {
	if os.Getenv("DATABASE_URL") != "" {
		t.Skip("needs a server of its own")
	}
	p, err := Start(t.Context(), Options{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil {
		p.Stop()
		t.Fatal("it started")
	}
	t.Log(err)
}

func TestAServerOnAnotherMachineIsRefused(t *testing.T) {
	t.Setenv("TEST_POSTGRES_VERSION", "")
	for host, refused := range map[string]bool{
		"db.example.org": true, "10.0.0.1": true, "localhost.example.org": true, "[2001:db8::1]:5432": true,
		"127.0.0.1:1,db.example.org:1": true,
		"127.0.0.1:1":                  false, "127.1.2.3:1": false, "[::1]:1": false, "localhost:1": false,
		"%2Fnowhere": false, "/postgres?host=/nowhere": false,
	} {
		t.Setenv("DATABASE_URL", "postgres://wh0isit:s3cr3tc0re@"+host)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := Start(ctx, Options{}) // nobody listens at the others
		cancel()
		if err == nil || strings.Contains(err.Error(), "unset DATABASE_URL") != refused || strings.Contains(err.Error(), "s3cr3tc0re") {
			t.Errorf("%s: %v", host, err)
		}
	}
	t.Setenv("ALLOW_REMOTE_DATABASE", "1")
	t.Setenv("DATABASE_URL", "postgres://wh0isit:s3cr3tc0re@db.example.invalid/")
	if _, err := Start(t.Context(), Options{}); err == nil || strings.Contains(err.Error(), "unset DATABASE_URL") {
		t.Errorf("allowed: %v", err)
	}
}

func TestAServerInTheEnvironmentIsLeftAlone(t *testing.T) {
	ours := start(t, Options{})
	t.Setenv("TEST_POSTGRES_VERSION", "")
	t.Setenv("DATABASE_URL", ours.URL("postgres")+"&application_name=given")
	p := start(t, Options{})
	if got := ask(t, p, "SELECT current_setting('application_name')"); got != "given" {
		t.Errorf("the URL's parameters are lost: %q", got)
	}
	if p.LogFile() != "" || p.Port != ours.Port || p.Restart(t.Context()) == nil {
		t.Errorf("log %q, port %d of %d", p.LogFile(), p.Port, ours.Port)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	ask(t, ours, "SELECT 'still here'")
}
