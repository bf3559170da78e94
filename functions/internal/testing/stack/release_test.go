package stack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/docs"
	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

// release is what make release wrote.
type release struct {
	dir     string
	version string // without a v
}

func newRelease(t *testing.T) release {
	t.Helper()
	dir := os.Getenv("DIST")
	if dir == "" {
		t.Skip("make release runs this on what it wrote")
	}
	text, err := os.ReadFile(filepath.Join(dir, "metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	var metadata struct{ Version string }
	if err := json.Unmarshal(text, &metadata); err != nil || metadata.Version == "" {
		t.Fatalf("%v\n%s", err, text)
	}
	return release{dir, metadata.Version}
}

// archive returns the files of an archive with their modes.
func (r release) archive(t *testing.T, name string) (files map[string][]byte, modes map[string]os.FileMode) {
	t.Helper()
	files, modes = map[string][]byte{}, map[string]os.FileMode{}
	text, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".zip") {
		archive, err := zip.NewReader(bytes.NewReader(text), int64(len(text)))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.File {
			content, err := f.Open()
			if err == nil {
				files[f.Name], err = io.ReadAll(content)
			}
			if err != nil {
				t.Fatal(err)
			}
			modes[f.Name] = f.Mode()
		}
		return files, modes
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(unzipped); ; {
		f, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, modes
		}
		if err == nil {
			files[f.Name], err = io.ReadAll(archive)
		}
		if err != nil {
			t.Fatal(err)
		}
		modes[f.Name] = f.FileInfo().Mode()
	}
}

// target tells by a binary's first bytes what it is for.
func target(binary []byte) string {
	if f, err := elf.NewFile(bytes.NewReader(binary)); err == nil {
		return map[elf.Machine]string{elf.EM_X86_64: "linux_amd64", elf.EM_AARCH64: "linux_arm64"}[f.Machine]
	}
	if f, err := macho.NewFile(bytes.NewReader(binary)); err == nil {
		return map[macho.Cpu]string{macho.CpuAmd64: "darwin_amd64", macho.CpuArm64: "darwin_arm64"}[f.Cpu]
	}
	if f, err := pe.NewFile(bytes.NewReader(binary)); err == nil {
		return map[uint16]string{pe.IMAGE_FILE_MACHINE_AMD64: "windows_amd64", pe.IMAGE_FILE_MACHINE_ARM64: "windows_arm64"}[f.Machine]
	}
	return "nothing known"
}

// command is the archive of the command for a machine.
func (r release) command(machine string) string {
	name := "purge-tokens_" + r.version + "_" + machine
	if strings.HasPrefix(machine, "windows") {
		return name + ".zip"
	}
	return name + ".tar.gz"
}

// lambda is the function's zip for a processor.
func (r release) lambda(processor string) string {
	return "purge-tokens_" + r.version + "_lambda_" + processor + ".zip"
}

var (
	machines   = []string{"linux_amd64", "linux_arm64", "darwin_amd64", "darwin_arm64", "windows_amd64", "windows_arm64"}
	processors = map[string]string{"arm64": "linux_arm64", "x86_64": "linux_amd64"} // and the machine with it
)

func (r release) sbom() string { return "purge-tokens_" + r.version + "_sbom.cdx.json" }

func TestReleaseHasAChecksumForEachFileAndNoOther(t *testing.T) {
	r := newRelease(t)
	want := []string{"purge-tokens.yaml", "purge-tokens-network.yaml", "purge-tokens-drain.yaml", r.lambda("arm64"), r.lambda("x86_64"), r.sbom()}
	for _, machine := range machines {
		want = append(want, r.command(machine))
	}
	slices.Sort(want)
	sums, err := os.ReadFile(filepath.Join(r.dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(sums)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		text, err := os.ReadFile(filepath.Join(r.dir, name))
		if is := sha256.Sum256(text); err != nil || hex.EncodeToString(is[:]) != sum {
			t.Errorf("%s: %v", line, err)
		}
		got = append(got, name)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the sums are of\n%q, and not of\n%q", got, want)
	}
}

func TestReleaseHasACommandForEachMachine(t *testing.T) {
	r := newRelease(t)
	for _, machine := range machines {
		binary := "purge-tokens"
		if strings.HasPrefix(machine, "windows") {
			binary += ".exe"
		}
		files, modes := r.archive(t, r.command(machine))
		if is := target(files[binary]); is != machine || modes[binary].Perm() != 0o755 {
			t.Errorf("%s is for %s, mode %s", machine, is, modes[binary])
		}
		for _, name := range append(slices.Clone(docs.Pages), "LICENSE", "CHANGELOG.md", "SECURITY.md", "docs/pictures/dashboard.svg", "infra/network.yaml", "infra/postgres/role.sql", "infra/sqlserver/role.sql", "infra/events/check.json") {
			if is, err := docs.Page(name); err != nil || string(files[name]) != is {
				t.Errorf("%s: %s is not the repository's, %v", machine, name, err)
			}
		}
		if machine != runtime.GOOS+"_"+runtime.GOARCH {
			continue
		}
		path := filepath.Join(t.TempDir(), binary)
		if err := os.WriteFile(path, files[binary], 0o700); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(path, "version").CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "purge-tokens v"+r.version+", commit ") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// The function of a release is what the Makefile builds of the same commit.
func TestReleaseHasTheFunctionForEachProcessor(t *testing.T) {
	r := newRelease(t)
	functions := map[string][]byte{}
	for processor, machine := range processors {
		files, modes := r.archive(t, r.lambda(processor))
		if is := target(files["bootstrap"]); len(files) != 1 || is != machine || modes["bootstrap"].Perm() != 0o755 {
			t.Errorf("%s: %d files, bootstrap is for %s, mode %s", processor, len(files), is, modes["bootstrap"])
		}
		functions[machine] = files["bootstrap"]
	}
	here, ok := functions[runtime.GOOS+"_"+runtime.GOARCH]
	if !ok {
		t.Skip("none of them runs here, to tell its commit")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bootstrap"), here, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(dir, "bootstrap"), "version").CombinedOutput()
	said := regexp.MustCompile(`^purge-tokens (v\S+), commit (\S+),`).FindSubmatch(out)
	if err != nil || said == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	build := exec.Command("make", "--silent", "--directory", root, "build-PurgeTokens", "ARTIFACTS_DIR="+dir, "VERSION="+string(said[1]), "COMMIT="+string(said[2]))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for machine, name := range map[string]string{"linux_arm64": "bootstrap-aarch64", "linux_amd64": "bootstrap-x86_64"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(text, functions[machine]) {
			t.Errorf("%s is not what make builds, %v", machine, err)
		}
	}
}

func TestReleaseListsWhatItIsBuiltFrom(t *testing.T) {
	r := newRelease(t)
	text, err := os.ReadFile(filepath.Join(r.dir, r.sbom()))
	if err != nil {
		t.Fatal(err)
	}
	var sbom struct {
		BomFormat string
		Metadata  struct {
			Component struct{ Name, Version string }
		}
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal(text, &sbom); err != nil || sbom.BomFormat != "CycloneDX" || sbom.Metadata.Component.Version != "v"+r.version {
		t.Fatalf("%v, %+v", err, sbom.Metadata)
	}
	has := map[string]bool{}
	for _, c := range sbom.Components {
		has[c.Name+" "+c.Version] = true
	}
	mod, err := docs.Page("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"github.com/jackc/pgx/v5", "github.com/microsoft/go-mssqldb", "github.com/aws/aws-lambda-go"} {
		version := regexp.MustCompile(`(?m)^\t` + regexp.QuoteMeta(name) + ` (\S+)`).FindStringSubmatch(mod)
		if version == nil || !has[name+" "+version[1]] {
			t.Errorf("it does not list %s %v", name, version)
		}
	}
}

func TestReleaseTemplateIsSound(t *testing.T) {
	r := newRelease(t)
	needTools(t)
	path := filepath.Join(r.dir, "purge-tokens.yaml")
	if out, err := exec.Command(tools+"cfn-lint", path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(path)
	if err != nil || len(text) > 51_200 { // above, the AWS CLI wants a bucket for the template
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// From the archive of the command to rows that are gone, each command as it is printed
// in docs/command-line.md, on a machine without Go.
func TestReleaseCommandPurgesAsDocumented(t *testing.T) {
	t.Parallel()
	r := newRelease(t)
	server, err := pgserver.Start(t.Context(), pgserver.Options{Own: true, Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	if err := edfi.CreateDatabase(t.Context(), server.URL("postgres"), "EdFi_Admin"); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.URL("EdFi_Admin"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // its server goes
	if err := errors.Join(edfi.CreateSchema(t.Context(), conn), edfi.Fill(t.Context(), conn, edfi.FillOptions{Expired: 1_234, Live: 55}, nil)); err != nil {
		t.Fatal(err)
	}
	blocks, err := docs.Commands()
	if err != nil {
		t.Fatal(err)
	}
	script := "tar -xzf '" + filepath.Join(r.dir, r.command(runtime.GOOS+"_"+runtime.GOARCH)) + "'\n"
	for _, b := range blocks {
		if b.Kind() == docs.Local {
			script += b.Text
		}
	}
	script = strings.ReplaceAll(script, docs.ExampleURL, server.URL("EdFi_Admin"))
	script = regexp.MustCompile(`(?m)^(purge-tokens purge -max-rows \S+)$`).ReplaceAllString(script, "$1 || test $$? = 3") // it stops at its cap
	command := exec.Command("bash", "-euo", "pipefail", "-c", script)
	command.Dir, command.Env = t.TempDir(), []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir()}
	out, err := command.CombinedOutput()
	for _, want := range []string{"complete: a purge will work", "complete: a purge would delete 1,234 rows", "complete: 234 rows deleted, and nothing expired is left"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v, no %q in\n%s", err, want, out)
		}
	}
	if expired, live, err := edfi.Counts(t.Context(), conn); err != nil || expired != 0 || live != 55 {
		t.Errorf("%d expired and %d live rows are left, %v", expired, live, err)
	}
}

// From the release's files to a schedule that is on, an upgrade, and back, each
// command as it is printed in docs/deploy.md.
func TestReleaseIsDeployedUpgradedAndRolledBackAsDocumented(t *testing.T) {
	t.Parallel()
	r := newRelease(t)
	const name = "purge-tokens-prod"
	c := newSecondCloud(t)
	c.playFunctions(t)
	c.add(name, fakeFunction{answers: []answer{complete(0)}})

	// The files as downloaded, and a next version with other code.
	dirs := map[string]string{r.version: t.TempDir(), "9.9.9": t.TempDir()}
	for _, file := range []string{"SHA256SUMS", "purge-tokens.yaml", r.lambda("arm64"), r.command("linux_amd64")} {
		copyFile(t, filepath.Join(r.dir, file), filepath.Join(dirs[r.version], file))
	}
	next := exec.Command("go", "run", "./scripts/package", "-version", "9.9.9", "-commit", "fedcba987654", dirs["9.9.9"])
	next.Dir = root
	if out, err := next.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	copyFile(t, emptyZip(t), filepath.Join(dirs["9.9.9"], "purge-tokens_9.9.9_lambda_arm64.zip"))

	blocks, err := docs.Commands()
	if err != nil {
		t.Fatal(err)
	}
	versions := []string{}
	// The AWS CLI is there, and neither Go nor SAM.
	programs, aws := t.TempDir(), ""
	if aws, err = filepath.Abs(tools + "aws"); err == nil {
		err = os.Symlink(aws, filepath.Join(programs, "aws"))
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(dir, text string) {
		t.Helper()
		text = strings.NewReplacer("<bucket>", "purge-tokens-code", "<secret-arn>", required["SecretArn"], "<host>", "127.0.0.1",
			"<subnet-1>", "subnet-0123456789abcdef0", "<subnet-2>", "subnet-0123456789abcdef1", "<security-group>", "sg-0123456789abcdef0",
			"<address>", "operations@example.org").Replace(text)
		command := exec.Command("bash", "-euo", "pipefail", "-c", text)
		command.Dir, command.Env = dir, c.env()
		command.Env[0] = "PATH=" + programs + ":/usr/bin:/bin"
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, text, out)
		}
	}
	deployed := func() string {
		output := c.list(t, "cloudformation", "describe-stacks", "--stack-name", name, "--query", "Stacks[0].Outputs[?OutputKey=='Version'].OutputValue")[0].(string)
		version, _, _ := strings.Cut(output, " (")
		return version
	}
	// The function has the code of the zip that the template names.
	hasCode := func(version string) {
		t.Helper()
		zip, err := os.ReadFile(filepath.Join(dirs[version], "purge-tokens_"+version+"_lambda_arm64.zip"))
		if err != nil {
			t.Fatal(err)
		}
		want := sha256.Sum256(zip)
		if got := c.aws(t, "lambda", "get-function-configuration", "--function-name", name)["CodeSha256"]; got != base64.StdEncoding.EncodeToString(want[:]) {
			t.Errorf("the code of version %s is %v", version, got)
		}
	}
	for _, b := range blocks {
		if b.Kind() != docs.Release {
			continue
		}
		version := r.version
		if b.Heading == "Upgrade and roll back" && strings.Contains(b.Text, "s3 cp") {
			version = "9.9.9"
		}
		run(dirs[version], b.Text)
		if strings.Contains(b.Text, "cloudformation deploy") {
			versions = append(versions, deployed())
			hasCode(version)
		}
	}
	same(t, "versions", versions, fmt.Sprintf(`["v%[1]s", "v%[1]s", "v%[1]s", "v9.9.9", "v%[1]s"]`, r.version))
	same(t, "asked", c.asked(name), `["{\"action\": \"check\"}\n", "{\"action\": \"dry-run\"}\n", "{\"action\": \"purge\", \"maxRows\": 100000}\n", "{\"action\": \"purge\"}\n"]`)
	rules := c.list(t, "events", "list-rules", "--query", "Rules[].State")
	same(t, "rules", rules, `["ENABLED"]`)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What infra/Dockerfile copies runs alone, as the user that it names.
func TestReleaseRunsInAnImageThatHasNothingElse(t *testing.T) {
	newRelease(t)
	context, image := t.TempDir(), t.TempDir()
	if out, err := exec.Command(root+"/scripts/image-context.sh", context).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := docs.Page("infra/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	user, entry := regexp.MustCompile(`(?m)^USER (\d+):(\d+)$`).FindStringSubmatch(text), regexp.MustCompile(`(?m)^ENTRYPOINT \["(\S+)"\]$`).FindStringSubmatch(text)
	if !strings.Contains(text, "\nFROM scratch\n") || user == nil || user[1] == "0" || entry == nil {
		t.Fatalf("user %v, entry point %v in\n%s", user, entry, text)
	}
	copied := regexp.MustCompile(`(?m)^COPY (?:--chmod=755 )?(\S+) (\S+)$`).FindAllStringSubmatch(text, -1)
	for _, m := range copied {
		to := filepath.Join(image, m[2])
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		copyFile(t, filepath.Join(context, strings.ReplaceAll(m[1], "${TARGETARCH}", runtime.GOARCH)), to)
		if err := os.Chmod(to, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if len(copied) != 2 || os.Getuid() != 0 {
		t.Skipf("%d files are copied; only root can change the root directory", len(copied))
	}
	if err := os.Chmod(image, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("chroot", "--userspec="+user[1]+":"+user[2], image, entry[1], "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "purge-tokens v") {
		t.Errorf("%v\n%s", err, out)
	}
}
