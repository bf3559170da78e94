package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// create deploys a template.
func (c *cloud) create(t *testing.T, name, path string, parameters map[string]string) {
	t.Helper()
	args := []string{
		"cloudformation", "create-stack", "--stack-name", name, "--capabilities", "CAPABILITY_IAM",
		"--template-body", "file://" + path, "--parameters",
	}
	for parameter, value := range parameters {
		args = append(args, fmt.Sprintf(`ParameterKey=%s,ParameterValue="%s"`, parameter, value))
	}
	c.aws(t, args...)
	if status := c.status(t, name); status != "CREATE_COMPLETE" {
		t.Fatalf("%s is %s", name, status)
	}
}

func (c *cloud) status(t *testing.T, stack string) string {
	t.Helper()
	list := c.aws(t, "cloudformation", "describe-stacks", "--stack-name", stack)["Stacks"].([]any)
	return list[0].(object)["StackStatus"].(string)
}

// prepare writes the translation to a file, and puts a zip where it looks for one.
func (c *cloud) prepare(t *testing.T) (path string) {
	t.Helper()
	load(t)
	text, _ := translation()
	path = filepath.Join(t.TempDir(), "stack.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c.aws(t, "s3api", "create-bucket", "--bucket", "code")
	c.aws(t, "s3api", "put-object", "--bucket", "code", "--key", "bootstrap.zip", "--body", emptyZip(t))
	return path
}

// emptyZip writes a zip without files, which is the end of one.
func emptyZip(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "bootstrap.zip")
	if err := os.WriteFile(path, []byte("PK\x05\x06"+strings.Repeat("\x00", 18)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheStackDeploysAndIsDeletedWhole(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	path := c.prepare(t)
	network := c.network(t)
	values := map[string]string{
		"SecretArn": required["SecretArn"], "KmsKeyArn": others["KmsKeyArn"], "Databases": others["Databases"],
		"SubnetIds": network.subnets, "SecurityGroupId": network.group,
	}
	c.create(t, stackName, path, values)

	f := c.aws(t, "lambda", "get-function-configuration", "--function-name", stackName)
	same(t, "runtime, timeout", []any{f["Runtime"], f["Timeout"]}, `["provided.al2023", 300]`)
	variables := f["Environment"].(object)["Variables"].(object)
	same(t, "variables", []any{variables["SECRET_ID"], variables["DATABASES"], variables["LOCK_TIMEOUT"], variables["DB_HOST"]},
		`["`+values["SecretArn"]+`", "`+values["Databases"]+`", "2s", ""]`)
	if role := c.roleOf(t, stackName); !strings.HasSuffix(f["Role"].(string), "/"+role) {
		t.Errorf("role %v, not %s", f["Role"], role)
	} else {
		names := c.aws(t, "iam", "list-role-policies", "--role-name", role)["PolicyNames"]
		same(t, "policies", names, `["purge"]`)
	}
	rules := c.aws(t, "events", "list-rules")["Rules"].([]any)
	if len(rules) != 1 || rules[0].(object)["ScheduleExpression"] != "rate(30 minutes)" || rules[0].(object)["State"] != "ENABLED" {
		t.Errorf("rules %s", pretty(rules))
	}
	targets := c.aws(t, "events", "list-targets-by-rule", "--rule", rules[0].(object)["Name"].(string))["Targets"].([]any)
	if target := targets[0].(object); target["Arn"] != arn(stackName) || target["DeadLetterConfig"] == nil {
		t.Errorf("target %s", pretty(target))
	}

	c.aws(t, "cloudformation", "delete-stack", "--stack-name", stackName)
	for _, left := range [][]string{
		{"lambda", "list-functions", "--query", "Functions[].FunctionName"},
		{"iam", "list-roles", "--query", "Roles[].RoleName"},
		{"events", "list-rules", "--query", "Rules[].Name"},
		{"sqs", "list-queues", "--query", "QueueUrls"},
		{"logs", "describe-log-groups", "--query", "logGroups[].logGroupName"},
	} {
		if out := c.list(t, left...); len(out) != 0 {
			t.Errorf("%q after the deletion: %v", left, out)
		}
	}
}

// network is the deployed infra/network.yaml.
type network struct{ subnets, group string }

func (c *cloud) network(t *testing.T) network {
	t.Helper()
	vpc := c.aws(t, "ec2", "create-vpc", "--cidr-block", "10.0.0.0/16")["Vpc"].(object)["VpcId"].(string)
	subnet := c.aws(t, "ec2", "create-subnet", "--vpc-id", vpc, "--cidr-block", "10.0.1.0/24")["Subnet"].(object)["SubnetId"].(string)
	database := c.aws(t, "ec2", "create-security-group", "--group-name", "database", "--description", "database", "--vpc-id", vpc)["GroupId"].(string)
	c.create(t, "network", root+"/infra/network.yaml", map[string]string{
		"VpcId": vpc, "SubnetIds": subnet, "DatabaseSecurityGroupId": database, "EndpointCidrs": "10.0.0.0/16",
	})
	stack := c.aws(t, "cloudformation", "describe-stacks", "--stack-name", "network")["Stacks"].([]any)[0].(object)
	group := stack["Outputs"].([]any)[0].(object)["OutputValue"].(string)

	endpoints := c.aws(t, "ec2", "describe-vpc-endpoints")["VpcEndpoints"].([]any)
	endpoint := endpoints[0].(object)
	if len(endpoints) != 1 || endpoint["ServiceName"] != "com.amazonaws.us-east-1.secretsmanager" || endpoint["VpcEndpointType"] != "Interface" {
		t.Errorf("endpoints %s", pretty(endpoints))
	}
	in := c.aws(t, "ec2", "describe-security-groups", "--group-ids", database)["SecurityGroups"].([]any)[0].(object)["IpPermissions"].([]any)
	if !slices.ContainsFunc(in, func(p any) bool {
		from, _ := p.(object)["UserIdGroupPairs"].([]any)
		return p.(object)["FromPort"] == 5432.0 && len(from) == 1 && from[0].(object)["GroupId"] == group
	}) {
		t.Errorf("into the database: %s", pretty(in))
	}
	return network{subnet, group}
}

// list returns the list that a command prints.
func (c *cloud) list(t *testing.T, args ...string) []any {
	t.Helper()
	var out []any
	c.awsInto(t, &out, args...)
	return out
}
