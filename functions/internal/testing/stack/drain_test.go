package stack

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func arn(name string) string { return "arn:aws:lambda:us-east-1:123456789012:function:" + name }

func arns(names ...string) []string {
	var list []string
	for _, name := range names {
		list = append(list, arn(name))
	}
	return list
}

// machine is infra/drain.yaml, as it was deployed.
type machine struct {
	*cloud
	arn string
}

// deployDrain creates the stack.
func (c *cloud) deployDrain(t *testing.T, functions []string, values map[string]string) machine {
	t.Helper()
	values["Functions"] = strings.Join(functions, ",")
	c.create(t, "drain", root+"/infra/drain.yaml", values)
	return machine{c, "arn:aws:states:us-east-1:123456789012:stateMachine:drain"}
}

// executable hands the deployed definition over to the part of moto that
// executes; its CloudFormation deploys to another one.
func (m machine) executable(t *testing.T) machine {
	t.Helper()
	deployed := m.aws(t, "stepfunctions", "describe-state-machine", "--state-machine-arn", m.arn)
	m.post(t, "/moto-api/config", "", `{"stepfunctions": {"execute_state_machine": true}}`)
	machine := m.aws(t, "stepfunctions", "create-state-machine", "--name", "executed",
		"--definition", deployed["definition"].(string), "--role-arn", deployed["roleArn"].(string))
	m.arn = machine["stateMachineArn"].(string)
	return m
}

// execute runs the machine and answers its status and its output, or where it
// failed the error with the output in its cause.
func (m machine) execute(t *testing.T, input string) (status, failed string, output object) {
	t.Helper()
	start, err := json.Marshal(map[string]string{"stateMachineArn": m.arn, "input": input, "name": rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	execution := m.post(t, "/", "AWSStepFunctions.StartExecution", string(start))["executionArn"].(string)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		d := m.post(t, "/", "AWSStepFunctions.DescribeExecution", fmt.Sprintf(`{"executionArn": %q}`, execution))
		status = d["status"].(string)
		if status == "RUNNING" && time.Now().Before(deadline) {
			continue
		}
		text, _ := d["output"].(string)
		if failed, _ = d["error"].(string); failed != "" {
			text = d["cause"].(string)
		}
		if err := json.Unmarshal([]byte(text), &output); err != nil {
			t.Fatalf("%v: %s", err, pretty(d))
		}
		return status, failed, output
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	m := c.deployDrain(t, arns("one", "two"), map[string]string{"MaxRuns": "3", "Backoff": "1"})

	role := c.roleOf(t, "drain")
	same(t, "it may invoke its functions alone", c.policy(t, role, "drain"), `{"Version": "2012-10-17", "Statement": [{
		"Effect": "Allow", "Action": "lambda:InvokeFunction", "Resource": ["`+arn("one")+`", "`+arn("two")+`"]}]}`)
	same(t, "policies", c.list(t, "iam", "list-role-policies", "--role-name", role, "--query", "PolicyNames"), `["drain"]`)

	m = m.executable(t)

	t.Run("all functions of the stack until each is complete", func(t *testing.T) {
		t.Parallel()
		c.add("one", fakeFunction{answers: []answer{partial(100), partial(50), complete(7)}})
		c.add("two", fakeFunction{answers: []answer{complete(0)}})
		status, _, output := m.execute(t, `{}`)
		same(t, status, output, `{"deletedRows": 157, "runs": 4, "drained": 2, "functions": 2, "results": [
			{"function": "`+arn("one")+`", "status": "complete", "deletedRows": 157, "runs": 3, "drained": 1},
			{"function": "`+arn("two")+`", "status": "complete", "deletedRows": 0, "runs": 1, "drained": 1}]}`)
		if status != "SUCCEEDED" || !slices.Equal(c.asked("one"), []string{"{}", "{}", "{}"}) {
			t.Errorf("%s; one was asked %q", status, c.asked("one"))
		}
	})

	t.Run("the functions and the request of the input", func(t *testing.T) {
		t.Parallel()
		c.add("asked", fakeFunction{answers: []answer{complete(1)}})
		status, _, output := m.execute(t, `{"functions": ["`+arn("asked")+`"], "request": {"maxDuration": "5m", "databases": ["A"]}}`)
		if status != "SUCCEEDED" || output["functions"] != 1.0 {
			t.Errorf("%s: %s", status, pretty(output))
		}
		if got := c.asked("asked"); len(got) != 1 || got[0] != `{"maxDuration": "5m", "databases": ["A"]}` {
			t.Errorf("asked %q", got)
		}
	})

	t.Run("a cap on runs", func(t *testing.T) {
		t.Parallel()
		c.add("endless", fakeFunction{answers: []answer{partial(10)}})
		status, failed, output := m.execute(t, `{"functions": ["`+arn("endless")+`"]}`)
		same(t, status, output, `{"deletedRows": 30, "runs": 3, "drained": 0, "functions": 1, "results": [
			{"function": "`+arn("endless")+`", "status": "partial", "deletedRows": 30, "runs": 3, "drained": 0}]}`)
		if status != "FAILED" || failed != "NotDrained" || len(c.asked("endless")) != 3 {
			t.Errorf("%s %s after %d runs", status, failed, len(c.asked("endless")))
		}
	})

	t.Run("a failure, tried twice again, stops no other", func(t *testing.T) {
		t.Parallel()
		c.add("failing", fakeFunction{answers: []answer{partial(5), failure("PurgeFailed")}})
		c.add("mistaken", fakeFunction{answers: []answer{failure("InvalidEvent")}})
		c.add("recovering", fakeFunction{answers: []answer{failure("PurgeFailed"), complete(3)}})
		status, failed, output := m.execute(t, `{"functions": ["`+strings.Join(arns("failing", "mistaken", "recovering"), `","`)+`"]}`)
		same(t, status, output, `{"deletedRows": 8, "runs": 2, "drained": 1, "functions": 3, "results": [
			{"function": "`+arn("failing")+`", "status": "failed", "error": "PurgeFailed", "deletedRows": 5, "runs": 1, "drained": 0},
			{"function": "`+arn("mistaken")+`", "status": "failed", "error": "InvalidEvent", "deletedRows": 0, "runs": 0, "drained": 0},
			{"function": "`+arn("recovering")+`", "status": "complete", "deletedRows": 3, "runs": 1, "drained": 1}]}`)
		if status != "FAILED" || failed != "NotDrained" {
			t.Errorf("%s %s", status, failed)
		}
		if a, b := len(c.asked("failing")), len(c.asked("mistaken")); a != 4 || b != 1 {
			t.Errorf("failing was asked %d times, mistaken %d times", a, b)
		}
	})

	t.Run("busy functions are waited for", func(t *testing.T) {
		t.Parallel()
		c.add("busy", fakeFunction{answers: []answer{throttled, throttled, throttled, complete(9)}})
		status, _, output := m.execute(t, `{"functions": ["`+arn("busy")+`"]}`)
		if status != "SUCCEEDED" || output["deletedRows"] != 9.0 || output["runs"] != 1.0 {
			t.Errorf("%s: %s", status, pretty(output))
		}
	})

	t.Run("the wait doubles while another run holds the database", func(t *testing.T) {
		t.Parallel()
		c.add("held", fakeFunction{answers: []answer{partial(0), partial(0), complete(4)}})
		start := time.Now()
		status, _, output := m.execute(t, `{"functions": ["`+arn("held")+`"]}`)
		if status != "SUCCEEDED" || output["runs"] != 3.0 {
			t.Errorf("%s: %s", status, pretty(output))
		}
		if took := time.Since(start); took < 3*time.Second {
			t.Errorf("waited 1 s and 2 s, in %v?", took)
		}
	})

	t.Run("no more functions at once than allowed", func(t *testing.T) {
		t.Parallel()
		together := &crowd{met: make(chan struct{})}
		names := []string{"a", "b", "c", "d", "e"}
		for _, name := range names {
			c.add(name, fakeFunction{answers: []answer{complete(1)}, crowd: together})
		}
		status, _, output := m.execute(t, `{"functions": ["`+strings.Join(arns(names...), `","`)+`"]}`)
		if status != "SUCCEEDED" || output["deletedRows"] != 5.0 {
			t.Errorf("%s: %s", status, pretty(output))
		}
		if together.most > 2 {
			t.Errorf("%d at once", together.most)
		}
	})
}

// roleOf answers the name of a stack's resource Role.
func (c *cloud) roleOf(t *testing.T, stack string) string {
	t.Helper()
	r := c.aws(t, "cloudformation", "describe-stack-resource", "--stack-name", stack, "--logical-resource-id", "Role")
	return r["StackResourceDetail"].(object)["PhysicalResourceId"].(string)
}

// policy answers a policy of a role. moto writes it as Python would.
func (c *cloud) policy(t *testing.T, role, name string) (document any) {
	t.Helper()
	text := c.aws(t, "iam", "get-role-policy", "--role-name", role, "--policy-name", name)["PolicyDocument"].(string)
	if err := json.Unmarshal([]byte(strings.ReplaceAll(text, `'`, `"`)), &document); err != nil {
		t.Fatal(err)
	}
	return document
}
