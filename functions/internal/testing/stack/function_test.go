package stack

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edfi-token-purge/functions/internal/testing/fakeaws"
)

// build makes the real function, for this machine.
func build(t *testing.T) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "bootstrap")
	if out, err := exec.Command("go", "build", "-tags", "lambda.norpc", "-o", binary, root+"/functions/purge-tokens").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// run invokes the function with the variables that the template gives it, and
// returns its output and the type of its error. There is a secret, but no
// database.
func run(t *testing.T, binary string, variables object) (output, errorType string) {
	t.Helper()
	secrets, err := fakeaws.NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(secrets.Close)
	secrets.Put("purge", `{"engine":"postgres","host":"127.0.0.1","port":1,"username":"u","password":"p"}`)
	env := []string{"AWS_ENDPOINT_URL_SECRETS_MANAGER=" + secrets.URL()}
	for name, value := range variables {
		env = append(env, name+"="+value.(string))
	}
	env = append(env, "SECRET_ID=purge", "DB_HOST=127.0.0.1", "DB_PORT=1")
	api, err := fakeaws.NewRuntimeAPI()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	var stdout bytes.Buffer
	f, err := fakeaws.StartFunction(t.Context(), fakeaws.FunctionOptions{Binary: binary, Env: env, API: api, Stdout: &stdout})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := f.Invoke(t.Context(), []byte(`{"action":"check"}`), 40*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	f.Stop()
	_ = f.Wait() // killed; what counts is its output, which is whole now
	if reply.Error == nil {
		t.Fatalf("the function returned %s", reply.Payload)
	}
	return stdout.String(), reply.Error.Type
}

func TestTheFunctionTakesTheDefaultsAndTheExamples(t *testing.T) {
	stack, binary := load(t), build(t)
	for _, values := range stages(t) {
		delete(values, "stack_name")
		variables := stack.with(t, values)["PurgeTokens"]["Environment"].(object)["Variables"].(object)
		if output, errorType := run(t, binary, variables); errorType != "PurgeFailed" {
			t.Errorf("%s with %v\n%s", errorType, variables, output)
		}
	}
}

// emitted returns the metrics and the dimension sets of the line that the
// function writes for a database.
func emitted(t *testing.T, variables object) (metrics, dimensions []string) {
	t.Helper()
	output, _ := run(t, build(t), variables)
	for text := range strings.Lines(output) {
		var line struct {
			AWS struct {
				CloudWatchMetrics []struct {
					Dimensions [][]string
					Metrics    []struct{ Name string }
				}
			} `json:"_aws"`
		}
		if json.Unmarshal([]byte(text), &line) != nil || line.AWS.CloudWatchMetrics == nil {
			continue
		}
		for _, m := range line.AWS.CloudWatchMetrics[0].Metrics {
			metrics = append(metrics, m.Name)
		}
		for _, directive := range line.AWS.CloudWatchMetrics {
			for _, d := range directive.Dimensions {
				dimensions = append(dimensions, strings.Join(d, ","))
			}
		}
		return metrics, dimensions
	}
	t.Fatalf("no metric line in\n%s", output)
	return nil, nil
}
