package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrNoPooler is the error of StartPooler where PgBouncer is not installed and can't
// be fetched.
var ErrNoPooler = errors.New("no PgBouncer: install it, or run on a system that has apt-get")

// Pooler is a running PgBouncer in front of one server.
type Pooler struct {
	Host string
	Port uint16

	programs *Server // that runs it as it runs its own
}

// StartPooler starts PgBouncer in front of p, with such settings as pool_mode. logins
// has the password of each user. It takes the PgBouncer that is installed, else it
// fetches Debian's or Ubuntu's package, once, into the cache, as root or not.
func (p *Server) StartPooler(ctx context.Context, settings, logins map[string]string) (*Pooler, error) {
	binary, libraries, err := pgbouncer(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "throwaway-pgbouncer-")
	if err != nil {
		return nil, err
	}
	programs := &Server{dir: dir, bin: filepath.Dir(binary), env: append(os.Environ(), "LD_LIBRARY_PATH="+libraries)}
	b := &Pooler{Host: "127.0.0.1", programs: programs}
	if err := b.start(ctx, p, settings, logins); err != nil {
		err = fmt.Errorf("start PgBouncer: %w%s", err, programs.tail())
		return nil, errors.Join(err, b.Stop())
	}
	return b, nil
}

// Stop ends the pooler and with it all of its connections. One that had ended by itself is
// an error, with the end of its log.
func (b *Pooler) Stop() error {
	var ended error
	if b.programs.server != nil {
		select {
		case <-b.programs.server.exited:
			ended = fmt.Errorf("PgBouncer ended by itself: %w%s", b.programs.server.err, b.programs.tail())
		default:
		}
	}
	return errors.Join(ended, b.programs.Stop())
}

func (b *Pooler) start(ctx context.Context, p *Server, settings, logins map[string]string) (err error) {
	if b.Port, err = freePort(); err != nil {
		return err
	}
	var users, config strings.Builder
	quote := strings.NewReplacer(`"`, `""`)
	for user, password := range logins {
		fmt.Fprintf(&users, "\"%s\" \"%s\"\n", quote.Replace(user), quote.Replace(password))
	}
	usersFile, configFile := filepath.Join(b.programs.dir, "users"), filepath.Join(b.programs.dir, "config")
	// It waits for the disk with each line of its log, and all of its clients with it.
	fmt.Fprintf(&config, "[databases]\n* = host=%s port=%d\n[pgbouncer]\nlisten_addr = %s\nlisten_port = %d\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = %s\nlog_connections = 0\nlog_disconnections = 0\n",
		p.Host, p.Port, b.Host, b.Port, usersFile)
	for name, value := range settings {
		fmt.Fprintf(&config, "%s = %s\n", name, value)
	}
	err = errors.Join(os.WriteFile(usersFile, []byte(users.String()), 0o600), os.WriteFile(configFile, []byte(config.String()), 0o600),
		giveAway(b.programs.dir, usersFile, configFile))
	if err != nil {
		return err
	}
	if b.programs.server, err = b.programs.launch("pgbouncer", configFile); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := net.Dial("tcp", net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-b.programs.server.exited:
			return fmt.Errorf("it ended: %w", b.programs.server.err)
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// pgbouncer returns the binary, and where to look for its libraries first.
func pgbouncer(ctx context.Context) (binary, libraries string, err error) {
	for _, installed := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(installed); err == nil {
			return path, "", nil
		}
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", "", ErrNoPooler
	}
	cache, err := cacheDir()
	if err != nil {
		return "", "", err
	}
	home := filepath.Join(cache, "pgbouncer")
	if unpackedPooler(home) == "" {
		if err := fetchPooler(ctx, cache, home); err != nil {
			return "", "", fmt.Errorf("%w: %w", ErrNoPooler, err)
		}
	}
	found, _ := filepath.Glob(filepath.Join(home, "usr", "lib", "*-linux-*"))
	return unpackedPooler(home), strings.Join(found, ":"), nil
}

func unpackedPooler(home string) string {
	path, _ := exec.LookPath(filepath.Join(home, "usr", "sbin", "pgbouncer"))
	return path
}

// fetchPooler unpacks the package and the libraries that it depends on into home. It
// keeps apt's lists to itself, so that it need not be root and changes nothing.
func fetchPooler(ctx context.Context, cache, home string) error {
	if err := errors.Join(os.MkdirAll(cache, 0o755), os.Chmod(cache, 0o755)); err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // it is a cache
	const script = `set -e
mkdir -p lists/partial archives/partial unpacked
apt() { program=$1; shift; "$program" -o Dir::State::lists="$PWD/lists" -o Dir::Cache="$PWD" -o APT::Sandbox::User= "$@"; }
apt apt-get update -qq
apt apt-get download -qq pgbouncer $(apt apt-cache depends --important pgbouncer | sed -n 's/.*Depends: \(lib[^ ]*\)$/\1/p' | grep -v '^libc6$')
for package in *.deb; do dpkg-deb -x "$package" unpacked; done
chmod -R a+rX unpacked`
	shell := exec.CommandContext(ctx, "sh", "-c", script)
	shell.Dir = work
	if out, err := shell.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch PgBouncer: %w\n%s", err, out)
	}
	// Of two processes the second finds the first's directory in its way.
	if err := os.Rename(filepath.Join(work, "unpacked"), home); err != nil && unpackedPooler(home) == "" {
		return err
	}
	return nil
}
