package stack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script runs one of scripts/*.sh against the imitation.
func (c *cloud) script(t *testing.T, name, stdin string, env ...string) (stdout, stderr string, err error) {
	t.Helper()
	return c.run(t, name, nil, stdin, env...)
}

// run is the same for a script with arguments.
func (c *cloud) run(t *testing.T, name string, args []string, stdin string, env ...string) (stdout, stderr string, err error) {
	t.Helper()
	command := exec.Command(root+"/scripts/"+name, args...)
	command.Env = append(append(c.env(), "STAGE=test"), env...)
	command.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	err = command.Run()
	return out.String(), errs.String(), err
}

const announced = "account   123456789012\nregion    us-east-1\nfunction  purge-tokens-test\n"

func TestScripts(t *testing.T) {
	t.Parallel()
	c := newCloud(t)

	// Each has a function of its own, so that what it was asked can be told.
	invoke := func(t *testing.T, name, stdin string, a answer, env ...string) (stdout, stderr string, err error) {
		t.Helper()
		c.add(name, fakeFunction{answers: []answer{a}})
		return c.script(t, "invoke.sh", stdin, append(env, "STACK="+name)...)
	}

	t.Run("invoke says where, then dry-runs", func(t *testing.T) {
		t.Parallel()
		stdout, stderr, err := invoke(t, "purge-tokens-test", "", complete(0))
		if err != nil || !strings.HasPrefix(stderr, announced) {
			t.Errorf("%v\n%s", err, stderr)
		}
		same(t, "asked", c.asked("purge-tokens-test"), `["{\"action\":\"dry-run\"}"]`)
		if want := "\"status\": \"complete\",\n"; !strings.Contains(stdout, want) || !json.Valid([]byte(stdout)) {
			t.Errorf("result not readable: %s", stdout)
		}
	})

	t.Run("invoke writes JSON, whatever the values", func(t *testing.T) {
		t.Parallel()
		_, stderr, err := invoke(t, "json", "", complete(0), "ACTION=check", `DATABASES=EdFi_Admin, a"b\c ,$(id),d e`,
			"GRACE_PERIOD=24h", "MAX_ROWS=100000", "BATCH_SIZE=1000", "MAX_DURATION=2m")
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		var event any
		if err := json.Unmarshal([]byte(c.asked("json")[0]), &event); err != nil {
			t.Fatal(err)
		}
		same(t, "event", event, `{"action": "check", "databases": ["EdFi_Admin", "a\"b\\c", "$(id)", "d e"],
			"gracePeriod": "24h", "maxRows": 100000, "batchSize": 1000, "maxDuration": "2m"}`)
	})

	for _, wrong := range []string{"MAX_ROWS=1e3", "MAX_ROWS=-1", "BATCH_SIZE=1,2", "MAX_ROWS=007", "DATABASES=a\tb", "STACK=a;b", "STACK=-x"} {
		t.Run("invoke refuses "+wrong, func(t *testing.T) {
			t.Parallel()
			if _, stderr, err := c.script(t, "invoke.sh", "", wrong); err == nil || strings.Contains(stderr, "account") {
				t.Errorf("%v\n%s", err, stderr)
			}
		})
	}

	t.Run("invoke fails when the function fails, and shows why", func(t *testing.T) {
		t.Parallel()
		stdout, stderr, err := invoke(t, "fails", "", failure("PurgeFailed"))
		if err == nil || !strings.Contains(stdout, "EdFi_Admin: no luck") || !strings.Contains(stderr, "the function failed") {
			t.Errorf("%v\n%s%s", err, stdout, stderr)
		}
		if n := len(c.asked("fails")); n != 1 {
			t.Errorf("invoked %d times", n)
		}
	})

	t.Run("invoke fails when the function is busy, and does not try again", func(t *testing.T) {
		t.Parallel()
		if _, stderr, err := invoke(t, "busy", "", throttled); err == nil || !strings.Contains(stderr, "TooManyRequestsException") {
			t.Errorf("%v\n%s", err, stderr)
		}
		if n := len(c.asked("busy")); n != 1 {
			t.Errorf("invoked %d times", n)
		}
	})

	for i, c2 := range []struct {
		stdin, yes string
		purges     bool
	}{{"", "", false}, {"no\n", "", false}, {"yes\n", "", true}, {"", "1", true}} {
		t.Run(fmt.Sprintf("a purge asks: %q YES=%s", c2.stdin, c2.yes), func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("purge-%d", i)
			_, stderr, err := invoke(t, name, c2.stdin, complete(5), "ACTION=purge", "YES="+c2.yes)
			if (err == nil) != c2.purges || (len(c.asked(name)) == 1) != c2.purges {
				t.Errorf("%v, asked %q\n%s", err, c.asked(name), stderr)
			}
		})
	}

	t.Run("logs prints the lines of the last hour", func(t *testing.T) {
		t.Parallel()
		const group = "/aws/lambda/purge-tokens-test"
		c.aws(t, "logs", "create-log-group", "--log-group-name", group)
		if stdout, stderr, err := c.script(t, "logs.sh", ""); err != nil || stdout != "" || stderr != announced {
			t.Errorf("of an empty log: %v\n%q\n%s", err, stdout, stderr)
		}
		c.aws(t, "logs", "create-log-stream", "--log-group-name", group, "--log-stream-name", "s")
		events, _ := json.Marshal([]object{
			{"timestamp": time.Now().Add(-2 * time.Hour).UnixMilli(), "message": `{"msg":"old"}`},
			{"timestamp": time.Now().UnixMilli(), "message": `{"msg":"start"}`},
			{"timestamp": time.Now().UnixMilli(), "message": `{"msg":"end"}`},
		})
		c.aws(t, "logs", "put-log-events", "--log-group-name", group, "--log-stream-name", "s", "--log-events", string(events))
		stdout, stderr, err := c.script(t, "logs.sh", "")
		if err != nil || stdout != "{\"msg\":\"start\"}\n{\"msg\":\"end\"}\n" {
			t.Errorf("%v\n%q\n%s", err, stdout, stderr)
		}
	})

	t.Run("destroy asks, then deletes the stack", func(t *testing.T) {
		t.Parallel()
		c.create(t, "purge-tokens-old", root+"/infra/drain.yaml", map[string]string{"Functions": arn("one")})
		_, stderr, err := c.script(t, "destroy.sh", "no\n", "STACK=purge-tokens-old")
		if err == nil || !strings.Contains(stderr, "function  purge-tokens-old") || c.status(t, "purge-tokens-old") != "CREATE_COMPLETE" {
			t.Errorf("%v\n%s", err, stderr)
		}
		if _, stderr, err := c.script(t, "destroy.sh", "", "STACK=purge-tokens-old", "YES=1"); err != nil {
			t.Errorf("%v\n%s", err, stderr)
		}
		if left := c.list(t, "stepfunctions", "list-state-machines", "--query", "stateMachines[].name"); len(left) != 0 {
			t.Errorf("left %v", left)
		}
	})

	t.Run("destroy fails where there is no such stack", func(t *testing.T) {
		t.Parallel()
		_, stderr, err := c.script(t, "destroy.sh", "", "STACK=purge-tokens-nowhere", "YES=1")
		if err == nil || !strings.Contains(stderr, "no stack purge-tokens-nowhere") || strings.Contains(stderr, "deleted") {
			t.Errorf("%v\n%s", err, stderr)
		}
	})

	t.Run("pause switches the rule off, resume on again", func(t *testing.T) {
		t.Parallel()
		const name, template = "purge-tokens-paused", `{
			"Parameters": {"ScheduleState": {"Type": "String", "Default": "ENABLED"}},
			"Resources": {"Schedule": {"Type": "AWS::Events::Rule",
				"Properties": {"ScheduleExpression": "rate(30 minutes)", "State": {"Ref": "ScheduleState"}}}},
			"Outputs": {"RuleName": {"Value": {"Ref": "Schedule"}}}}`
		path := filepath.Join(t.TempDir(), "stack.json")
		if err := os.WriteFile(path, []byte(template), 0o600); err != nil {
			t.Fatal(err)
		}
		c.create(t, name, path, map[string]string{"ScheduleState": "ENABLED"})
		rule := c.list(t, "cloudformation", "describe-stacks", "--stack-name", name, "--query", "Stacks[0].Outputs[].OutputValue")[0].(string)
		for _, step := range []struct {
			action, state string
			reminds       bool
		}{{"pause", "DISABLED", true}, {"pause", "DISABLED", true}, {"resume", "ENABLED", false}} {
			_, stderr, err := c.run(t, "schedule.sh", []string{step.action}, "", "STACK="+name)
			if err != nil || !strings.Contains(stderr, "schedule  "+step.state+", rate(30 minutes)\n") ||
				strings.Contains(stderr, "The stack says ScheduleState=ENABLED") != step.reminds {
				t.Errorf("%s: %v\n%s", step.action, err, stderr)
			}
			if state := c.aws(t, "events", "describe-rule", "--name", rule)["State"]; state != step.state {
				t.Errorf("%s: the rule is %v", step.action, state)
			}
		}
	})

	t.Run("pause fails where there is no such stack", func(t *testing.T) {
		t.Parallel()
		_, stderr, err := c.run(t, "schedule.sh", []string{"pause"}, "", "STACK=purge-tokens-nowhere")
		if err == nil || !strings.Contains(stderr, "no stack purge-tokens-nowhere") || strings.Contains(stderr, "schedule ") {
			t.Errorf("%v\n%s", err, stderr)
		}
	})
}
