package stack

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// cloud is an imitation of AWS: moto, with invocations of functions answered by
// the test.
type cloud struct {
	url string

	mu        sync.Mutex
	functions map[string]*fakeFunction
}

// fakeFunction plays one function: its answers in turn, the last one for good.
type fakeFunction struct {
	answers  []answer
	crowd    *crowd // of several functions together; nil counts nothing
	payloads []string
}

// crowd counts functions that run at once.
type crowd struct {
	mu            sync.Mutex
	running, most int
	met           chan struct{} // closed once two do
}

// pass is one function's run. It waits until a second one runs, for a while only,
// and then gives a third time to come.
func (c *crowd) pass() {
	c.mu.Lock()
	if c.running++; c.running == 2 && c.most < 2 {
		close(c.met)
	}
	c.most = max(c.most, c.running)
	c.mu.Unlock()
	select {
	case <-c.met:
	case <-time.After(10 * time.Second):
	}
	time.Sleep(200 * time.Millisecond)
	c.mu.Lock()
	c.running--
	c.mu.Unlock()
}

// answer is what an invocation comes to.
type answer struct {
	status        int // 0 is 200
	functionError string
	body          string
}

func complete(rows int) answer {
	return answer{body: fmt.Sprintf(`{"status":"complete","action":"purge","deletedRows":%d}`, rows)}
}

func partial(rows int) answer {
	return answer{body: fmt.Sprintf(`{"status":"partial","action":"purge","deletedRows":%d}`, rows)}
}

func failure(errorType string) answer {
	return answer{functionError: "Unhandled", body: fmt.Sprintf(`{"errorType":%q,"errorMessage":"EdFi_Admin: no luck"}`, errorType)}
}

var throttled = answer{status: 429, body: `{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}`}

var invocation = regexp.MustCompile(`^/2015-03-31/functions/(?:.*:)?([^:/]+)/invocations$`)

// newCloud starts the imitation.
func newCloud(t *testing.T) *cloud {
	t.Helper()
	needTools(t)
	c := &cloud{functions: map[string]*fakeFunction{}}
	// Its state machines invoke functions at MOTO_PORT of localhost: here, not there.
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	_, front, _ := net.SplitHostPort(listener.Addr().String())
	c.url = "http://localhost:" + front
	rest := httputil.NewSingleHostReverseProxy(c.startMoto(t, front))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m := invocation.FindStringSubmatch(r.URL.Path); m != nil {
			c.invoke(w, r, m[1])
			return
		}
		rest.ServeHTTP(w, r)
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return c
}

var serving = regexp.MustCompile(`Running on (http://\S+)\n`)

// startMoto starts a moto that takes a free port itself, and answers where it
// serves; front is the port where its state machines find Lambda.
func (c *cloud) startMoto(t *testing.T, front string) *url.URL {
	t.Helper()
	process := exec.Command(tools+"moto_server", "-H", "127.0.0.1", "-p", "0")
	process.Env = append(c.env(), "MOTO_PORT="+front)
	output, err := os.Create(filepath.Join(t.TempDir(), "moto"))
	if err != nil {
		t.Fatal(err)
	}
	process.Stdout, process.Stderr = output, output
	said := func() string {
		text, _ := os.ReadFile(output.Name())
		return string(text)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		_ = output.Close()
		if t.Failed() {
			t.Logf("moto: ...%s", tail(said(), 4000))
		}
	})
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if m := serving.FindStringSubmatch(said()); m != nil {
			address, err := url.Parse(m[1])
			if err != nil {
				t.Fatal(err)
			}
			return address
		}
	}
	t.Fatal("moto does not answer")
	return nil
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (c *cloud) path() string {
	dir, _ := filepath.Abs(tools)
	return dir + ":" + os.Getenv("PATH")
}

// env is an environment in which AWS is the imitation.
func (c *cloud) env() []string {
	return []string{
		"PATH=" + c.path(), "HOME=" + os.Getenv("HOME"),
		"AWS_ENDPOINT_URL=" + c.url, "AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region,
		"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
		"AWS_CONFIG_FILE=" + os.DevNull, "AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull, "AWS_EC2_METADATA_DISABLED=true",
		"NO_PROXY=localhost,127.0.0.1", "no_proxy=localhost,127.0.0.1",
	}
}

// post sends JSON and answers JSON.
func (c *cloud) post(t *testing.T, path, target, body string) object {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Amz-Target", target)
	request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/"+region+"/states/aws4_request, SignedHeaders=host, Signature=x")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer object
	if err := json.Unmarshal(text, &answer); err != nil || response.StatusCode >= 300 {
		t.Fatalf("%s %s: %s", target, response.Status, text)
	}
	return answer
}

// aws runs the AWS CLI and answers the object that it prints.
func (c *cloud) aws(t *testing.T, args ...string) object {
	t.Helper()
	var answer object
	c.awsInto(t, &answer, args...)
	return answer
}

// awsInto runs the AWS CLI and reads what it prints, if anything, into v.
func (c *cloud) awsInto(t *testing.T, v any, args ...string) {
	t.Helper()
	command := exec.Command(tools+"aws", append(args, "--output", "json", "--endpoint-url", c.url)...)
	command.Env = c.env()
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("aws %q: %v\n%s", args, err, stderr.String())
	}
	if stdout.Len() > 0 {
		if err := json.Unmarshal(stdout.Bytes(), v); err != nil {
			t.Fatalf("aws %q: %v\n%s", args, err, stdout.String())
		}
	}
}

func (c *cloud) add(name string, f fakeFunction) *fakeFunction {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.functions[name] = &f
	return &f
}

// asked answers the payloads that the function was invoked with.
func (c *cloud) asked(name string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.functions[name].payloads
}

func (c *cloud) invoke(w http.ResponseWriter, r *http.Request, name string) {
	payload, _ := io.ReadAll(r.Body)
	w.Header().Set("x-amzn-RequestId", rand.Text())
	c.mu.Lock()
	f := c.functions[name]
	if f == nil {
		c.mu.Unlock()
		w.Header().Set("x-amzn-ErrorType", "ResourceNotFoundException")
		http.Error(w, `{"Message":"Function not found"}`, http.StatusNotFound)
		return
	}
	f.payloads = append(f.payloads, string(payload))
	a := f.answers[min(len(f.payloads), len(f.answers))-1]
	c.mu.Unlock()

	if f.crowd != nil {
		f.crowd.pass()
	}
	if a.functionError != "" {
		w.Header().Set("X-Amz-Function-Error", a.functionError)
	}
	if a.status == http.StatusTooManyRequests {
		w.Header().Set("x-amzn-ErrorType", "TooManyRequestsException")
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	_, _ = io.WriteString(w, a.body)
}
