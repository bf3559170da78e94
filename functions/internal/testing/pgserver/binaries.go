package pgserver

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// installed answers the directory of the machine's own binaries, or "".
func installed() string {
	var candidates []string
	if path, err := exec.LookPath("pg_ctl"); err == nil {
		// What is on PATH may be a link, or a script that says where to go on.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			candidates = append(candidates, filepath.Dir(real))
		}
		if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
			candidates = append(candidates, strings.TrimSpace(string(out)))
		}
	}
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(debian, func(a, b string) int { return cmp.Compare(major(b), major(a)) })
	for _, dir := range append(candidates, debian...) {
		if complete(dir) {
			return dir
		}
	}
	return ""
}

// major answers the version in /usr/lib/postgresql/<version>/bin; 0 for none.
func major(dir string) float64 {
	v, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(dir)), 64)
	return v
}

// complete tells whether all programs are in dir side by side. pg_ctl alone,
// such as a distribution's wrapper, is no server.
func complete(dir string) bool {
	for _, program := range []string{"initdb", "pg_ctl", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
			return false
		}
	}
	return true
}

// fetched answers the directory of the binaries of a version, "" being 17, and
// downloads them from Maven Central if they are not in the cache. Processes
// that do so at the same time don't disturb each other.
func fetched(version string, progress func(string)) (string, error) {
	if version == "" {
		version = string(embedded.V17)
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	home := filepath.Join(cache, "postgres-"+version)
	bin := filepath.Join(home, "bin")
	if complete(bin) {
		return bin, nil
	}
	progress("downloading PostgreSQL " + version + ", once")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(cache, 0o755); err != nil { // whatever the umask is
		return "", err
	}
	work, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work) //nolint:errcheck // it is a cache
	unpacked := filepath.Join(work, "unpacked")
	if err := unpack(version, work, unpacked); err != nil {
		return "", err
	}
	// Of two processes the second finds the first's directory in its way.
	if err := os.Rename(unpacked, home); err != nil && !complete(bin) {
		return "", err
	}
	return bin, nil
}

// cacheDir answers where downloads are kept. Root's own cache would be closed
// to the user that the server runs as.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/edfi-token-purge", nil
	}
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "edfi-token-purge"), err
}

// unpack downloads a version and unpacks it into dir; work is for the rest.
func unpack(version, work, dir string) error {
	// The library downloads, unpacks and starts, and only the first two are
	// wanted: a data directory that holds its version and nothing more spares
	// the library initdb, and no server starts on it.
	data := filepath.Join(work, "data")
	number, _, _ := strings.Cut(version, ".")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(number), 0o600); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	err = embedded.NewDatabase(embedded.DefaultConfig().Version(embedded.PostgresVersion(version)).
		Port(uint32(port)).Logger(io.Discard).CachePath(work).BinariesPath(dir).
		RuntimePath(filepath.Join(work, "run")).DataPath(data)).Start()
	if !complete(filepath.Join(dir, "bin")) {
		return cmp.Or(err, errors.New("the download holds no server"))
	}
	// Whatever the umask is, another user may have to run them.
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode() | 0o444
		if mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}
