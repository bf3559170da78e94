// Package pgserver starts a PostgreSQL server that lives as long as a test or
// a demonstration, on any machine that has Go, as root and as an ordinary user.
package pgserver

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	startTimeout = 60 * time.Second // from start to the first log-in
	stopTimeout  = 10 * time.Second // from the request to the kill
	portAttempts = 5                // a free port may be taken before the server binds it
	logTail      = 2 << 10          // bytes of the log that an error quotes
)

// Options for Start; the zero value will do.
type Options struct {
	// Settings of postgresql.conf, such as log_min_duration_statement. They
	// don't reach a server in DATABASE_URL. fsync is on unless they say
	// otherwise, for benchmarks must tell the truth.
	Settings map[string]string
	// Files are written where Settings find them by name alone, such as
	// certificates and their key. They too don't reach a server in DATABASE_URL.
	Files map[string][]byte
	// Version, such as 17.5.0, is downloaded even where a PostgreSQL is
	// installed or DATABASE_URL is set. "" is the version in
	// TEST_POSTGRES_VERSION, else any.
	Version string
	// Own starts a server even where DATABASE_URL is set, for tests that restart
	// it.
	Own bool
	// Env is for PostgreSQL's programs, on top of our own environment, such as an
	// LD_PRELOAD. It too doesn't reach a server in DATABASE_URL.
	Env []string
	// Progress is told of each step that takes long; nil is nobody.
	Progress func(string)
}

// Server is a running server, and the login of its superuser.
type Server struct {
	Host     string
	Port     uint16
	User     string
	Password string

	given *url.URL // DATABASE_URL, of a server that Start found running
	bin   string   // where the binaries are
	dir   string   // all that Start made: data, log, password
	env   []string // of its programs

	mu     sync.Mutex // of Stop and Restart
	server *process   // nil while none runs
}

// Start takes the server in DATABASE_URL if that is set, whose user must be a
// superuser, unless o says otherwise; else it starts one of the machine's own
// PostgreSQL; else it downloads PostgreSQL, once, into the user's cache. It
// answers when the server accepts log-ins; ctx bounds that, not the server's
// life.
//
// The command purge-tokens reads the same variable, in which a shell may still
// have a production server. So one on another machine is refused, unless
// ALLOW_REMOTE_DATABASE is 1.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Version == "" {
		o.Version = os.Getenv("TEST_POSTGRES_VERSION")
	}
	if given := os.Getenv("DATABASE_URL"); given != "" && o.Version == "" && !o.Own {
		return found(ctx, given)
	}
	bin := installed()
	if bin == "" || o.Version != "" {
		var err error
		if bin, err = fetched(o.Version, o.Progress); err != nil {
			return nil, fmt.Errorf("fetch postgres: %w", err)
		}
	}
	p := &Server{Host: "127.0.0.1", User: "postgres", Password: cryptorand.Text(), bin: bin, env: append(os.Environ(), o.Env...)}
	if err := p.create(ctx, o); err != nil {
		err = fmt.Errorf("start postgres: %w%s", err, p.tail())
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func found(ctx context.Context, given string) (*Server, error) {
	// Neither error may quote the URL, which holds a password.
	address, err := url.Parse(given)
	if err != nil || address.Scheme != "postgres" && address.Scheme != "postgresql" {
		return nil, errors.New("DATABASE_URL: not a postgres:// URL")
	}
	config, err := pgx.ParseConfig(given)
	if err != nil {
		return nil, errors.New("DATABASE_URL: not a PostgreSQL address")
	}
	if remote(config) && os.Getenv("ALLOW_REMOTE_DATABASE") != "1" {
		return nil, errors.New("DATABASE_URL: the server is not on this machine, and databases would be created on it: " +
			"unset DATABASE_URL, or set ALLOW_REMOTE_DATABASE=1 if that is what you mean")
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	conn.Close(ctx) //nolint:errcheck // it was only to see
	return &Server{
		Host: config.Host, Port: config.Port, User: config.User, Password: config.Password, given: address,
	}, nil
}

// remote tells whether any of the hosts is another machine's.
func remote(config *pgx.ConnConfig) bool {
	hosts := []string{config.Host}
	for _, f := range config.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	return slices.ContainsFunc(hosts, func(host string) bool {
		socket := strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@")
		return !socket && host != "localhost" && !net.ParseIP(host).IsLoopback()
	})
}

// Found tells whether the server is the one in DATABASE_URL, which stays.
func (p *Server) Found() bool { return p.given != nil }

// URL answers the address of a database for the superuser.
func (p *Server) URL(database string) string {
	if p.given != nil {
		u := *p.given // its parameters may say how TLS is done
		u.Path, u.RawPath = "/"+database, ""
		return u.String()
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(p.User, p.Password),
		Host: net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port))), Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// LogFile answers the path of the server's log; "" when it was found running.
func (p *Server) LogFile() string {
	if p.dir == "" {
		return ""
	}
	return filepath.Join(p.dir, "log")
}

// Restart stops the server, ending its sessions, and starts it again on the
// same port and data.
func (p *Server) Restart(ctx context.Context) error { return p.restart(ctx, syscall.SIGINT) }

// Crash is Restart with no time to write anything down: the server recovers
// from its log, and what was committed asynchronously just before is lost.
func (p *Server) Crash(ctx context.Context) error { return p.restart(ctx, syscall.SIGQUIT) }

func (p *Server) restart(ctx context.Context, how syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil {
		return errors.New("restart postgres: no server of ours runs")
	}
	p.end(how)
	if err := p.run(ctx); err != nil {
		return fmt.Errorf("restart postgres: %w%s", err, p.tail())
	}
	return nil
}

// Stop ends the server and deletes its data. It may be called again. A server
// that Start found running is left alone.
func (p *Server) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(syscall.SIGQUIT) // nothing need be written down that is deleted next
	if p.dir == "" {
		return nil
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	return nil
}

// create makes a cluster and runs its server.
func (p *Server) create(ctx context.Context, o Options) error {
	var err error
	if p.dir, err = os.MkdirTemp("", "throwaway-postgres-"); err != nil {
		return err
	}
	password := filepath.Join(p.dir, "password")
	if err := os.WriteFile(password, []byte(p.Password), 0o600); err != nil {
		return err
	}
	if err := giveAway(p.dir, password); err != nil {
		return err
	}
	o.Progress("creating a throwaway PostgreSQL from " + p.bin)
	// The C locale is the one that every build has. Without --no-sync initdb
	// waits for the disk, for data that nobody will miss.
	initdb, err := p.launch("initdb", "--pgdata", p.data(), "--username", p.User, "--pwfile", password,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	if err != nil {
		return err
	}
	select {
	case <-initdb.exited:
	case <-ctx.Done():
		initdb.kill()
		return context.Cause(ctx)
	}
	if initdb.err != nil {
		return fmt.Errorf("initdb: %w", initdb.err)
	}
	if err := p.configure(o.Settings); err != nil {
		return err
	}
	for name, content := range o.Files {
		path := filepath.Join(p.data(), name)
		if err := errors.Join(os.WriteFile(path, content, 0o600), giveAway(path)); err != nil {
			return err
		}
	}
	for range portAttempts {
		if p.Port, err = freePort(); err != nil {
			return err
		}
		if err = p.run(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return err
}

func (p *Server) data() string { return filepath.Join(p.dir, "data") }

// configure appends to postgresql.conf, rather than to the command line, so
// that ALTER SYSTEM still has a say.
func (p *Server) configure(settings map[string]string) error {
	f, err := os.OpenFile(filepath.Join(p.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	quote := strings.NewReplacer(`'`, `''`, `\`, `\\`)
	fmt.Fprintf(f, "\nmax_connections = 200\n") // a later line wins
	for name, value := range settings {
		fmt.Fprintf(f, "%s = '%s'\n", name, quote.Replace(value))
	}
	return f.Close()
}

var errPortTaken = errors.New("port taken")

// run starts the server on p.Port and waits for the first log-in.
func (p *Server) run(ctx context.Context) error {
	before := len(p.log())
	server, err := p.launch("postgres", "-D", p.data(), "-c", "listen_addresses="+p.Host,
		"-c", "port="+strconv.Itoa(int(p.Port)), "-c", "unix_socket_directories=")
	if err != nil {
		return err
	}
	p.server = server
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, p.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-server.exited:
			p.server = nil
			if bytes.Contains(p.log()[before:], []byte("could not bind")) {
				return errPortTaken
			}
			return fmt.Errorf("the server ended: %w", server.err)
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end stops the server if one runs: SIGINT is "fast", which ends sessions, and
// SIGQUIT "immediate".
func (p *Server) end(how syscall.Signal) {
	if p.server == nil {
		return
	}
	// Windows knows neither, but there is the kill.
	if p.server.cmd.Process.Signal(how) == nil {
		select {
		case <-p.server.exited:
		case <-time.After(stopTimeout):
		}
	}
	p.server.kill()
	p.server = nil
}

func (p *Server) log() []byte {
	text, _ := os.ReadFile(p.LogFile()) // none yet is as good as empty
	return text
}

// tail answers the end of the log, to follow an error.
func (p *Server) tail() string {
	text := bytes.TrimSpace(p.log())
	if len(text) == 0 {
		return ""
	}
	return "\n" + string(text[max(0, len(text)-logTail):])
}

// process is a child that ends with this process, on Linux.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // read it after exited
}

// launch starts one of PostgreSQL's programs with its output in the log.
func (p *Server) launch(program string, args ...string) (*process, error) {
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child has its own
	c := &process{cmd: exec.Command(filepath.Join(p.bin, program), args...), exited: make(chan struct{})}
	// The directory that we are in may be closed to the user that it runs as.
	c.cmd.Dir, c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr, c.cmd.SysProcAttr = p.dir, p.env, log, log, attributes()
	started := make(chan error)
	go func() {
		// The kernel ends the child when the thread that forked it ends, and Go
		// ends a thread when any goroutine that locked it returns. So the fork
		// happens on a thread that is ours alone until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.exited)
		}
	}()
	return c, <-started
}

func (c *process) kill() {
	c.cmd.Process.Kill() //nolint:errcheck // it may have ended already
	<-c.exited
}

// freePort answers a port below those that systems give to whoever asks for
// any: what starts or connects in the meantime, or while the server is down
// between Stop and Start, does not take it.
func freePort() (uint16, error) {
	var err error
	for range portAttempts {
		port := 20000 + rand.N(uint16(12000))
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, err
}
