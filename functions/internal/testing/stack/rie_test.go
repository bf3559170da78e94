package stack

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/pgserver"
	"edfi-token-purge/functions/internal/testing/rig"
)

// The SAM CLI carries AWS's own emulator of the Lambda runtime, for Linux.
func TestTheFunctionPurgesInAWSsOwnEmulator(t *testing.T) {
	t.Parallel()
	needTools(t)
	arch := map[string]string{"amd64": "x86_64", "arm64": "arm64"}[runtime.GOARCH]
	found, _ := filepath.Glob(root + "/.venv/lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-" + arch)
	if runtime.GOOS != "linux" || len(found) != 1 {
		t.Skipf("AWS has no emulator for %s on %s", runtime.GOOS, runtime.GOARCH)
	}
	emulator, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	r, err := rig.New(t.Context(), build(t), pgserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	conn, err := r.CreateDatabase(t.Context(), "EdFi_Admin")
	if err != nil {
		t.Fatal(err)
	}
	if err := edfi.Fill(t.Context(), conn, edfi.FillOptions{Expired: 1000, Live: 100}, nil); err != nil {
		t.Fatal(err)
	}

	address := freeAddress(t)
	process := exec.Command(emulator, "--runtime-interface-emulator-address", address, "--runtime-api-address", freeAddress(t), r.Binary)
	process.Env = []string{
		"AWS_LAMBDA_FUNCTION_NAME=purge", "AWS_LAMBDA_FUNCTION_TIMEOUT=60", "AWS_REGION=" + region,
		"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
		"AWS_ENDPOINT_URL_SECRETS_MANAGER=" + r.Secrets.URL(), "SECRET_ID=" + rig.SecretID, "DB_TLS=disable",
	}
	var output bytes.Buffer
	process.Stdout, process.Stderr = &output, &output
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	reply := post(t, "http://"+address+"/2015-03-31/functions/function/invocations", `{
		"version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "detail-type": "Scheduled Event", "source": "aws.events",
		"account": "123456789012", "time": "2026-11-26T14:00:00Z", "region": "us-east-1",
		"resources": ["arn:aws:events:us-east-1:123456789012:rule/purge"], "detail": {}}`)
	_ = process.Process.Kill()
	_ = process.Wait()
	var result struct {
		Status      string
		DeletedRows int64
	}
	if err := json.Unmarshal([]byte(reply), &result); err != nil || result.Status != "complete" || result.DeletedRows != 1000 {
		t.Errorf("%v\n%s\n%s", err, reply, output.String())
	}
	if expired, live, err := edfi.Counts(t.Context(), conn); err != nil || expired != 0 || live != 100 {
		t.Errorf("%d expired and %d live rows are left, %v", expired, live, err)
	}
	if !strings.Contains(output.String(), `"CloudWatchMetrics"`) {
		t.Errorf("no metric line in\n%s", output.String())
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// post sends an event once somebody listens, and returns the reply.
func post(t *testing.T, url, event string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		response, err := http.Post(url, "application/json", strings.NewReader(event))
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			continue
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}
