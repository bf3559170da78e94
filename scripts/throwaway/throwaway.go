// Package throwaway starts a PostgreSQL server that lives as long as a test or
// a demonstration, on any machine that has Go, as root and as an ordinary user.
package throwaway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
	"github.com/jackc/pgx/v5"
)

const (
	startTimeout = 60 * time.Second // from start to the first log-in
	stopTimeout  = 10 * time.Second // from the request to the kill
)

// Options for Start; the zero value will do.
type Options struct {
	// Settings of postgresql.conf. They don't reach a server in DATABASE_URL.
	Settings map[string]string
	// Progress is told of each step that takes long; nil is nobody.
	Progress func(string)
}

// Postgres is a running server, and the login of its superuser.
type Postgres struct {
	Host     string
	Port     uint16
	User     string
	Password string

	dir     string // "" is a server that Start found running
	process *exec.Cmd
	exited  chan struct{}
}

// Start takes the server in DATABASE_URL if that is set, whose user must be a
// superuser; else it starts one of the machine's own PostgreSQL; else it
// downloads PostgreSQL into the user's cache. TEST_POSTGRES_VERSION, such as
// 17.5.0, asks for that version and always downloads.
func Start(ctx context.Context, o Options) (*Postgres, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	version := os.Getenv("TEST_POSTGRES_VERSION")
	if given := os.Getenv("DATABASE_URL"); given != "" && version == "" {
		return parse(given)
	}
	bin := installed()
	if bin == "" || version != "" {
		var err error
		if bin, err = download(version, o.Progress); err != nil {
			return nil, fmt.Errorf("download postgres: %w", err)
		}
	}
	p := &Postgres{Host: "127.0.0.1", User: "postgres", Password: rand.Text()}
	if err := p.start(ctx, bin, o); err != nil {
		log, _ := os.ReadFile(p.LogFile())
		p.Stop() //nolint:errcheck // err is the one to tell
		return nil, fmt.Errorf("start postgres: %w\n%s", err, log)
	}
	return p, nil
}

func parse(given string) (*Postgres, error) {
	config, err := pgx.ParseConfig(given)
	if err != nil {
		return nil, errors.New("DATABASE_URL is no PostgreSQL URL")
	}
	return &Postgres{Host: config.Host, Port: config.Port, User: config.User, Password: config.Password}, nil
}

// installed answers the directory of the machine's own binaries, or "".
func installed() string {
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(candidates, func(a, b string) int { // the newest first
		return len(b)*100 - len(a)*100 + strings.Compare(b, a)
	})
	if path, err := exec.LookPath("pg_ctl"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			candidates = append([]string{filepath.Dir(real)}, candidates...)
		}
	}
	for _, dir := range candidates {
		if exists(filepath.Join(dir, "initdb")) && exists(filepath.Join(dir, "postgres")) {
			return dir
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// download fetches and unpacks PostgreSQL once, and answers its directory of
// binaries. Processes that do so at the same time don't disturb each other.
func download(version string, progress func(string)) (string, error) {
	config := embedded.DefaultConfig()
	if version == "" {
		version = string(embedded.V17)
	}
	cache := "/var/cache" // a superuser's own cache is closed to the user that the server runs as
	if os.Geteuid() != 0 {
		var err error
		if cache, err = os.UserCacheDir(); err != nil {
			return "", err
		}
	}
	cache = filepath.Join(cache, "edfi-token-purge")
	home := filepath.Join(cache, "postgres-"+version)
	bin := filepath.Join(home, "bin")
	if exists(filepath.Join(bin, "postgres")) {
		return bin, nil
	}
	progress("downloading PostgreSQL " + version + ", once")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	port, err := freePort()
	if err != nil {
		return "", err
	}
	unpacked := filepath.Join(work, "unpacked")
	server := embedded.NewDatabase(config.Version(embedded.PostgresVersion(version)).Port(uint32(port)).Logger(io.Discard).
		CachePath(work).RuntimePath(filepath.Join(work, "run")).BinariesPath(unpacked))
	// The library downloads, unpacks and starts; only the first two are wanted
	// here, for as a superuser the third can't succeed.
	if err = server.Start(); err == nil {
		err = server.Stop()
	}
	if !exists(filepath.Join(unpacked, "bin", "postgres")) {
		return "", err
	}
	if err := os.Chmod(unpacked, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(unpacked, home); err != nil && !exists(filepath.Join(bin, "postgres")) {
		return "", err
	}
	return bin, nil
}

func freePort() (uint16, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port), nil
}

func (p *Postgres) start(ctx context.Context, bin string, o Options) error {
	var err error
	if p.dir, err = os.MkdirTemp("", "throwaway-postgres-"); err != nil {
		return err
	}
	passwordFile := filepath.Join(p.dir, "password")
	if err := os.WriteFile(passwordFile, []byte(p.Password), 0o600); err != nil {
		return err
	}
	if err := giveAway(p.dir, passwordFile); err != nil {
		return err
	}
	log, err := os.Create(p.LogFile())
	if err != nil {
		return err
	}
	defer log.Close()

	o.Progress("creating a throwaway PostgreSQL with " + filepath.Dir(bin))
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "--pgdata", filepath.Join(p.dir, "data"), "--no-sync",
		"--username", p.User, "--pwfile", passwordFile, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C")
	initdb.Dir, initdb.Stdout, initdb.Stderr, initdb.SysProcAttr = p.dir, log, log, attributes()
	if err := initdb.Run(); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	if p.Port, err = freePort(); err != nil {
		return err
	}
	settings := map[string]string{
		"listen_addresses":        p.Host,
		"port":                    strconv.Itoa(int(p.Port)),
		"unix_socket_directories": "",
		"max_connections":         "200",
	}
	for name, value := range o.Settings {
		settings[name] = value
	}
	args := []string{"-D", filepath.Join(p.dir, "data")}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	p.process = exec.Command(filepath.Join(bin, "postgres"), args...)
	p.process.Dir, p.process.Stdout, p.process.Stderr, p.process.SysProcAttr = p.dir, log, log, attributes()
	if err := p.process.Start(); err != nil {
		return err
	}
	p.exited = make(chan struct{})
	go func() {
		p.process.Wait() //nolint:errcheck // the log says how it ended
		close(p.exited)
	}()
	return p.ready(ctx)
}

// ready waits for the first log-in.
func (p *Postgres) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, p.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-p.exited:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// URL answers the address of a database for the superuser.
func (p *Postgres) URL(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(p.User, p.Password),
		Host: net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port))), Path: "/" + database,
	}
	return u.String() + "?sslmode=prefer"
}

// LogFile answers the path of the server's log; "" when it was found running.
func (p *Postgres) LogFile() string {
	if p.dir == "" {
		return ""
	}
	return filepath.Join(p.dir, "log")
}

// Stop ends the server and deletes its data. A server that Start found running
// is left alone.
func (p *Postgres) Stop() error {
	if p.dir == "" {
		return nil
	}
	if p.exited != nil {
		p.process.Process.Signal(syscall.SIGINT) //nolint:errcheck // it may have ended already
		select {
		case <-p.exited:
		case <-time.After(stopTimeout):
			p.process.Process.Kill() //nolint:errcheck // as above
			<-p.exited
		}
	}
	return os.RemoveAll(p.dir)
}
