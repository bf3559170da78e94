package stack

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/testing/docs"
)

// statement is one of an IAM policy, with its lists as lists.
type statement struct {
	deny               bool
	actions, resources []string
	conditions         map[string]map[string][]string // operator, key, values
}

// request is what IAM is asked: may this be done, to this resource, in this context.
// A service that asks without a resource asks for *.
type request struct {
	action, resource string
	context          map[string]string
}

// allows decides as IAM does: a Deny wins, and what nothing allows is denied.
func allows(t *testing.T, policy []statement, r request) bool {
	t.Helper()
	allowed := false
	for _, s := range policy {
		if !s.matches(t, r) {
			continue
		}
		if s.deny {
			return false
		}
		allowed = true
	}
	return allowed
}

func (s statement) matches(t *testing.T, r request) bool {
	t.Helper()
	action := func(pattern string) bool { return like(strings.ToLower(pattern), strings.ToLower(r.action)) }
	resource := func(pattern string) bool { return like(pattern, r.resource) }
	if !slices.ContainsFunc(s.actions, action) || !slices.ContainsFunc(s.resources, resource) {
		return false
	}
	for operator, keys := range s.conditions {
		for key, values := range keys {
			got, ok := r.context[key]
			var equal func(want string) bool
			switch operator {
			case "StringEquals":
				equal = func(want string) bool { return want == got }
			case "ArnEquals", "ArnLike", "StringLike":
				equal = func(want string) bool { return like(want, got) }
			default:
				t.Fatalf("the test knows no condition %s", operator)
			}
			if !ok || !slices.ContainsFunc(values, equal) {
				return false
			}
		}
	}
	return true
}

// like matches a text with a pattern that has * and ?.
func like(pattern, text string) bool {
	quoted := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(pattern))
	return regexp.MustCompile(`^(?s:` + quoted + `)$`).MatchString(text)
}

// policyOf reads a policy's document.
func policyOf(t *testing.T, document any) (policy []statement) {
	t.Helper()
	list := func(v any) (all []string) {
		switch v := v.(type) {
		case string:
			return []string{v}
		case []any:
			for _, item := range v {
				all = append(all, item.(string))
			}
		}
		return all
	}
	for _, v := range document.(object)["Statement"].([]any) {
		raw := v.(object)
		s := statement{deny: raw["Effect"] == "Deny", actions: list(raw["Action"]), resources: list(raw["Resource"])}
		if s.conditions = map[string]map[string][]string{}; raw["Condition"] != nil {
			for operator, keys := range raw["Condition"].(object) {
				s.conditions[operator] = map[string][]string{}
				for key, values := range keys.(object) {
					s.conditions[operator][key] = list(values)
				}
			}
		}
		for key := range raw {
			if !slices.Contains([]string{"Sid", "Effect", "Action", "Resource", "Condition"}, key) {
				t.Fatalf("the test knows no %s in a statement", key)
			}
		}
		if len(s.actions) == 0 || len(s.resources) == 0 {
			t.Fatalf("a statement without actions or resources: %s", pretty(raw))
		}
		policy = append(policy, s)
	}
	return policy
}

// rights returns what the stack's role may do with these values of the parameters.
func rights(t *testing.T, stack template, values map[string]string) (policy []statement) {
	t.Helper()
	role := stack.with(t, values)["Role"]
	if role["ManagedPolicyArns"] != nil {
		t.Error("managed policies")
	}
	for _, p := range role["Policies"].([]any) {
		policy = append(policy, policyOf(t, p.(object)["PolicyDocument"])...)
	}
	return policy
}

// only returns other values of these parameters.
func only(names ...string) map[string]string {
	values := map[string]string{}
	for _, name := range names {
		values[name] = others[name]
	}
	return values
}

// Lambda asks before an interface exists, without a resource, and not for the
// function; the function's code asks with the function's name.
func TestLambdaMayAttachTheFunctionToSubnetsAndItsCodeMayNot(t *testing.T) {
	stack := load(t)
	for name, values := range map[string]map[string]string{
		"in subnets":                               only("SubnetIds", "SecurityGroupId"),
		"after an update that took them away":      nil,
		"in subnets, with all other things beside": others,
	} {
		policy := rights(t, stack, values)
		for _, action := range []string{
			"CreateNetworkInterface", "DeleteNetworkInterface", "DescribeNetworkInterfaces",
			"DescribeSubnets", "AssignPrivateIpAddresses", "UnassignPrivateIpAddresses",
		} {
			if !allows(t, policy, request{action: "ec2:" + action, resource: "*"}) {
				t.Errorf("%s: Lambda may not %s", name, action)
			}
			for _, resource := range []string{"*", "arn:aws:ec2:us-east-1:123456789012:network-interface/eni-0a"} {
				fromCode := request{"ec2:" + action, resource, map[string]string{"lambda:SourceFunctionArn": arn(stackName)}}
				if allows(t, policy, fromCode) {
					t.Errorf("%s: the function's code may %s", name, action)
				}
			}
		}
		for _, action := range []string{"ec2:RunInstances", "ec2:CreateNetworkInterfacePermission", "ec2:DescribeInstances"} {
			if allows(t, policy, request{action: action, resource: "*"}) {
				t.Errorf("%s: %s is allowed", name, action)
			}
		}
	}
}

// lines returns a policy, one line for each statement.
func lines(policy []statement) (all []string) {
	for _, s := range policy {
		line := "Allow "
		if s.deny {
			line = "Deny "
		}
		line += strings.Join(s.actions, " ") + " on " + strings.Join(s.resources, " ")
		if len(s.conditions) > 0 {
			text, _ := json.Marshal(s.conditions)
			line += " if " + string(text)
		}
		all = append(all, line)
	}
	return all
}

func TestTheRoleMayDoNothingElse(t *testing.T) {
	stack := load(t)
	least := []string{
		"Allow secretsmanager:GetSecretValue on " + required["SecretArn"],
		"Allow logs:CreateLogStream logs:PutLogEvents on <LogGroup.Arn>",
		"Allow sqs:SendMessage on <DeadLetters.Arn>",
	}
	key := []string{
		`Allow kms:Decrypt on ` + others["KmsKeyArn"] + ` if {"StringEquals":{` +
			`"kms:EncryptionContext:SecretARN":["` + required["SecretArn"] + `"],` +
			`"kms:ViaService":["secretsmanager.us-east-1.amazonaws.com"]}}`,
		`Allow kms:Decrypt kms:GenerateDataKey on ` + others["KmsKeyArn"] + ` if {"StringEquals":{` +
			`"kms:ViaService":["sqs.us-east-1.amazonaws.com"]}}`,
	}
	network := []string{
		"Allow ec2:CreateNetworkInterface ec2:DeleteNetworkInterface ec2:DescribeNetworkInterfaces ec2:DescribeSubnets" +
			" ec2:AssignPrivateIpAddresses ec2:UnassignPrivateIpAddresses on *",
		`Deny ec2:* on * if {"ArnEquals":{"lambda:SourceFunctionArn":["arn:aws:lambda:us-east-1:123456789012:function:purge-tokens-test"]}}`,
	}
	traces := []string{"Allow xray:PutTraceSegments xray:PutTelemetryRecords on *"}

	for name, c := range map[string]struct {
		values map[string]string
		want   []string
	}{
		"least":        {nil, slices.Concat(least, network)},
		"key":          {only("KmsKeyArn"), slices.Concat(least, key, network)},
		"VPC":          {only("SubnetIds", "SecurityGroupId"), slices.Concat(least, network)},
		"with tracing": {only("Tracing"), slices.Concat(least, network, traces)},
	} {
		if got := lines(rights(t, stack, c.values)); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
		}
		if _, ok := stack.with(t, c.values)["Role"]["PermissionsBoundary"]; ok {
			t.Errorf("%s: a boundary", name)
		}
	}
	for name, resource := range stack.Resources {
		if kind := resource["Type"].(string); strings.HasPrefix(kind, "AWS::IAM::") && name != "Role" {
			t.Errorf("%s gives rights that this test does not look at", name)
		}
	}
	same(t, "boundary", stack.with(t, others)["Role"]["PermissionsBoundary"], `"`+others["PermissionsBoundaryArn"]+`"`)
}

// The list of rights in docs/deploy.md has each action once for each occasion on which the
// role may do it, and no other.
func TestThePageListsTheRolesRights(t *testing.T) {
	stack := load(t)
	type right struct{ action, when string }
	given := map[right]bool{}
	for when, values := range map[string]map[string]string{"always": nil, "with `KmsKeyArn`": only("KmsKeyArn"), "with `Tracing=Active`": only("Tracing")} {
		for _, s := range rights(t, stack, values) {
			for _, action := range s.actions {
				if when == "always" || !given[right{action, "always"}] {
					given[right{action, when}] = given[right{action, when}] || !s.deny
				}
			}
		}
	}
	for r := range given { // what is there always needs no other occasion
		if !given[r] || r.when != "always" && given[right{r.action, "always"}] {
			delete(given, r)
		}
	}

	page, err := docs.Page("docs/deploy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(page, "\n## Rights in AWS\n")
	section, _, _ = strings.Cut(section, "\n## ")
	listed := map[right]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+) \\|[^|]+\\| ([^|]+) \\|$").FindAllStringSubmatch(section, -1) {
		for _, span := range regexp.MustCompile("`([a-z0-9]+:[A-Za-z]+)`").FindAllStringSubmatch(row[1], -1) {
			listed[right{span[1], row[2]}] = true
		}
	}
	if !maps.Equal(listed, given) {
		t.Errorf("docs/deploy.md lists\n%v\nthe role has\n%v", listed, given)
	}
}

// file reads a policy of infra/.
func file(t *testing.T, name string) []statement {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "infra", name))
	if err != nil {
		t.Fatal(err)
	}
	var document any
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return policyOf(t, document)
}

const (
	prod    = "purge-tokens-prod" // the stack that the policies of infra/ are for
	ofProd  = ":us-east-1:123456789012:"
	samsOwn = "aws-sam-cli-managed-default"
)

// names has, for each kind of thing, how one of the stack prod is named where IAM is
// asked; more than one where AWS's pages differ.
var names = map[string][]string{
	"stack":     {"arn:aws:cloudformation" + ofProd + "stack/" + prod + "/00000000-0000-0000-0000-000000000000"},
	"samstack":  {"arn:aws:cloudformation" + ofProd + "stack/" + samsOwn + "/00000000-0000-0000-0000-000000000000"},
	"transform": {"arn:aws:cloudformation:us-east-1:aws:transform/Serverless-2016-10-31"},
	"function":  {"arn:aws:lambda" + ofProd + "function:" + prod},
	"layer":     {"arn:aws:lambda" + ofProd + "layer:rds-ca:1"},
	"role":      {"arn:aws:iam::123456789012:role/" + prod + "-Role-0A1B2C3D4E5F"},
	"rule":      {"arn:aws:events" + ofProd + "rule/" + prod + "-Schedule-0A1B2C3D4E5F"},
	"queue":     {"arn:aws:sqs" + ofProd + prod + "-DeadLetters-0A1B2C3D4E5F"},
	"topic":     {"arn:aws:sns" + ofProd + prod + "-AlarmTopic-0A1B2C3D4E5F"},
	"log":       {"arn:aws:logs" + ofProd + "log-group:/aws/lambda/" + prod, "arn:aws:logs" + ofProd + "log-group:/aws/lambda/" + prod + ":*"},
	"alarm":     {"arn:aws:cloudwatch" + ofProd + "alarm:" + prod + "-stale"},
	"dashboard": {"arn:aws:cloudwatch::123456789012:dashboard/" + prod},
	"bucket":    {"arn:aws:s3:::" + samsOwn + "-samclisourcebucket-0a1b2c3d4e5f"},
	"code":      {"arn:aws:s3:::" + samsOwn + "-samclisourcebucket-0a1b2c3d4e5f/" + prod + "/0a1b2c"},
	"any":       {"*"}, // of these actions AWS knows no narrower resource, or no name is asked for
}

// foreign returns the same name of a thing that belongs to another stack.
func foreign(name string) string {
	return strings.NewReplacer(prod, "payroll", samsOwn, "payroll", "rds-ca", "payroll").Replace(name)
}

// ask is one thing that a command does: an action on a kind of thing.
type ask struct {
	action, on string
	context    map[string]string
}

func asks(on string, actions ...string) (all []ask) {
	for _, action := range actions {
		all = append(all, ask{action: action, on: on})
	}
	return all
}

// complaints holds a policy against what the commands do, on the stack's things and
// on others'.
func complaints(t *testing.T, policy []statement, commands map[string][]ask) (all []string) {
	t.Helper()
	for command, needs := range commands {
		for _, a := range needs {
			if names[a.on] == nil {
				t.Fatalf("no name for %s", a.on)
			}
			for _, name := range names[a.on] {
				if !allows(t, policy, request{a.action, name, a.context}) {
					all = append(all, fmt.Sprintf("%s needs %s on %s", command, a.action, name))
				}
				if other := foreign(name); other != name && allows(t, policy, request{a.action, other, a.context}) {
					all = append(all, fmt.Sprintf("%s: %s is allowed on %s as well", command, a.action, other))
				}
			}
		}
	}
	return all
}

// suffices tells of a policy that lacks an action which a command needs, or has one
// that none needs.
func suffices(t *testing.T, policy []statement, commands map[string][]ask) {
	t.Helper()
	for _, complaint := range complaints(t, policy, commands) {
		t.Error(complaint)
	}
	if t.Failed() {
		return
	}
	for i, s := range policy {
		for j, action := range s.actions {
			less := slices.Clone(policy)
			less[i].actions = slices.Delete(slices.Clone(s.actions), j, j+1)
			if complaints(t, less, of(commands, action)) == nil {
				t.Errorf("%s is needed for nothing", action)
			}
		}
	}
}

// of returns what the commands need of one action.
func of(commands map[string][]ask, action string) map[string][]ask {
	only := map[string][]ask{}
	for command, needs := range commands {
		for _, a := range needs {
			if a.action == action {
				only[command] = append(only[command], a)
			}
		}
	}
	return only
}

func refuses(t *testing.T, policy []statement, who string, all []ask) {
	t.Helper()
	for _, a := range all {
		for _, name := range names[a.on] {
			if allows(t, policy, request{a.action, name, a.context}) {
				t.Errorf("%s may %s on %s", who, a.action, name)
			}
		}
	}
}

func TestWhoMayInvokeMayDoNoMore(t *testing.T) {
	same(t, "policy", lines(file(t, "iam-invoke.json")), `["Allow lambda:InvokeFunction on `+names["function"][0]+`"]`)
}

// whatDeploymentsDo are actions with which an operator would change or read more
// than the purge.
var whatDeploymentsDo = slices.Concat(
	asks("function", "lambda:UpdateFunctionCode", "lambda:UpdateFunctionConfiguration", "lambda:DeleteFunction"),
	asks("role", "iam:PutRolePolicy", "iam:PassRole", "iam:DeleteRole"),
	asks("rule", "events:PutRule", "events:PutTargets", "events:DeleteRule"),
	asks("stack", "cloudformation:UpdateStack", "cloudformation:DeleteStack", "cloudformation:CreateChangeSet"),
	asks("log", "logs:DeleteLogGroup"), asks("queue", "sqs:DeleteQueue", "sqs:SendMessage"),
	asks("any", "secretsmanager:GetSecretValue", "sts:AssumeRole"),
)

func TestWhoOperatesMayRunTheScriptsAndTheRunbook(t *testing.T) {
	policy := file(t, "iam-operate.json")
	suffices(t, policy, map[string][]ask{
		"make invoke":                    asks("function", "lambda:InvokeFunction"),
		"make logs":                      asks("log", "logs:FilterLogEvents"),
		"aws logs start-query":           slices.Concat(asks("log", "logs:StartQuery"), asks("any", "logs:GetQueryResults", "logs:StopQuery")),
		"make pause and make resume":     slices.Concat(asks("stack", "cloudformation:DescribeStacks", "cloudformation:DescribeStackResource"), asks("rule", "events:EnableRule", "events:DisableRule", "events:DescribeRule")),
		"RUNBOOK: stale":                 slices.Concat(asks("stack", "cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents"), asks("function", "lambda:GetFunctionConfiguration")),
		"RUNBOOK: dead-letters":          asks("queue", "sqs:ReceiveMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:DeleteMessage", "sqs:PurgeQueue"),
		"aws cloudwatch describe-alarms": asks("any", "cloudwatch:DescribeAlarms"),
		"the dashboard":                  slices.Concat(asks("dashboard", "cloudwatch:GetDashboard"), asks("any", "cloudwatch:GetMetricData", "cloudwatch:ListMetrics")),
	})
	refuses(t, policy, "an operator", whatDeploymentsDo)
}

// registry returns what CloudFormation's own handlers for a type of resource say
// that they may call, by what they do. cfn-lint brings AWS's list along.
func registry(t *testing.T, kind string) map[string][]string {
	t.Helper()
	dirs, err := filepath.Glob(root + "/.venv/lib/python3*/site-packages/cfnlint/data/schemas")
	if err != nil || len(dirs) != 1 {
		t.Fatalf("cfn-lint's schemas: %v, %v", dirs, err)
	}
	read := func(path string, v any) {
		text, err := os.ReadFile(filepath.Join(dirs[0], path))
		if err == nil {
			err = json.Unmarshal(text, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var files map[string]any
	read("providers/us-east-1.json", &files)
	var schema struct {
		Handlers map[string]struct{ Permissions []string }
	}
	read(fmt.Sprintf("resources/%s.json", files[kind]), &schema)
	actions := map[string][]string{}
	for does, h := range schema.Handlers {
		actions[does] = h.Permissions
	}
	return actions
}

// unused are actions that a handler calls only for properties that the template
// does not have.
var unused = map[string][]string{
	"AWS::Events::Rule":      {"iam:PassRole"}, // the target is called by its own policy
	"AWS::SNS::Topic":        {"iam:GetRole", "iam:PassRole", "sns:Subscribe", "sns:Unsubscribe", "sns:PutDataProtectionPolicy"},
	"AWS::SNS::Subscription": {"iam:GetRole", "iam:PassRole"},
	"AWS::IAM::Role":         {"iam:AttachRolePolicy", "iam:DetachRolePolicy"}, // no managed policies
	"AWS::Lambda::Function": {
		"elasticfilesystem:DescribeMountTargets", "s3files:ListMountTargets", // no file systems
		"kms:CreateGrant", "kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey", // no key for variables
		"lambda:GetCodeSigningConfig", "lambda:PutFunctionCodeSigningConfig", "lambda:DeleteFunctionCodeSigningConfig",
		"lambda:PutRuntimeManagementConfig", "lambda:PutFunctionRecursionConfig", "lambda:PutFunctionScalingConfig",
		"lambda:PassCapacityProvider", "lambda:AssociateRuntimeAlias", "lambda:PublishVersion",
	},
	"AWS::Logs::LogGroup": {
		"s3:REST.PUT.OBJECT", "firehose:TagDeliveryStream", "logs:CreateLogDelivery", // no data protection
		"logs:PutDataProtectionPolicy", "logs:DeleteDataProtectionPolicy", "logs:PutIndexPolicy", "logs:DeleteIndexPolicy",
		"logs:PutResourcePolicy", "logs:DeleteResourcePolicy", "logs:PutLogGroupDeletionProtection", "logs:PutBearerTokenAuthentication",
	},
}

// things has for each type of resource the kind of thing that its actions are on,
// and for actions on another kind theirs.
var things = map[string]string{
	"AWS::CloudWatch::Alarm": "alarm", "AWS::CloudWatch::Dashboard": "dashboard", "AWS::Events::Rule": "rule", "AWS::IAM::Role": "role",
	"AWS::Lambda::EventInvokeConfig": "function", "AWS::Lambda::Function": "function", "AWS::Lambda::Permission": "function",
	"AWS::Logs::LogGroup": "log", "AWS::SNS::Subscription": "topic", "AWS::SNS::Topic": "topic", "AWS::SQS::Queue": "queue", "AWS::SQS::QueuePolicy": "queue",

	"iam:PassRole": "role", "s3:GetObject": "code", "s3:GetObjectVersion": "code", "lambda:GetLayerVersion": "layer",
	"ec2:DescribeSecurityGroups": "any", "ec2:DescribeSubnets": "any", "ec2:DescribeVpcs": "any", "ec2:DescribeNetworkInterfaces": "any",
	"logs:DescribeLogGroups": "any", "logs:DescribeIndexPolicies": "any", "logs:DescribeResourcePolicies": "any",
	"sns:Unsubscribe": "any", "sns:GetSubscriptionAttributes": "any", "sns:SetSubscriptionAttributes": "any",
	"cloudwatch:DescribeAlarms": "any",
}

func TestWhoDeploysMayCreateUpdateAndDeleteTheStack(t *testing.T) {
	policy, stack := file(t, "iam-deploy.json"), load(t)
	toLambda := map[string]string{"iam:PassedToService": "lambda.amazonaws.com"}
	commands := map[string][]ask{
		"sam deploy": slices.Concat(
			asks("stack", "cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents", "cloudformation:CreateChangeSet", "cloudformation:DescribeChangeSet",
				"cloudformation:ExecuteChangeSet", "cloudformation:DeleteChangeSet", "cloudformation:ListStackResources", "cloudformation:GetTemplate"),
			asks("transform", "cloudformation:CreateChangeSet"),
			asks("any", "cloudformation:GetTemplateSummary", "cloudformation:ValidateTemplate"),
			asks("samstack", "cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents", "cloudformation:CreateChangeSet", "cloudformation:DescribeChangeSet",
				"cloudformation:ExecuteChangeSet", "cloudformation:GetTemplate"),
			asks("code", "s3:PutObject", "s3:GetObject"), asks("bucket", "s3:ListBucket", "s3:GetBucketLocation"),
		),
		"the first sam deploy of the account": asks("bucket", "s3:CreateBucket", "s3:PutBucketVersioning", "s3:PutBucketPublicAccessBlock",
			"s3:PutBucketPolicy", "s3:GetBucketPolicy", "s3:PutBucketTagging", "s3:PutEncryptionConfiguration"),
		"make destroy":             asks("stack", "cloudformation:DescribeStacks", "cloudformation:DeleteStack"),
		"a deployment that failed": asks("stack", "cloudformation:DeleteStack", "cloudformation:ContinueUpdateRollback"),
	}
	for _, resource := range stack.Resources {
		kind := resource["Type"].(string)
		handlers := registry(t, kind)
		for _, does := range []string{"create", "read", "update", "delete"} {
			for _, action := range handlers[does] {
				if slices.Contains(unused[kind], action) {
					continue
				}
				on, ok := things[action]
				if !ok {
					on = things[kind]
				}
				a := ask{action: action, on: on}
				if action == "iam:PassRole" {
					a.context = toLambda
				}
				commands[does+" "+kind] = append(commands[does+" "+kind], a)
			}
		}
		if len(handlers) == 0 {
			t.Errorf("no handlers of %s", kind)
		}
	}
	commands["KmsKeyArn"] = asks("log", "logs:AssociateKmsKey", "logs:DisassociateKmsKey")
	commands["PermissionsBoundaryArn"] = asks("role", "iam:PutRolePermissionsBoundary", "iam:DeleteRolePermissionsBoundary")
	commands["ReservedConcurrency"] = asks("function", "lambda:PutFunctionConcurrency", "lambda:DeleteFunctionConcurrency")
	suffices(t, policy, commands)

	refuses(t, policy, "to another service", []ask{{"iam:PassRole", "role", map[string]string{"iam:PassedToService": "ec2.amazonaws.com"}}, {"iam:PassRole", "role", nil}})
	refuses(t, policy, "whoever deploys", slices.Concat(
		asks("function", "lambda:InvokeFunction"), asks("queue", "sqs:ReceiveMessage", "sqs:PurgeQueue"), asks("log", "logs:FilterLogEvents"),
		asks("any", "secretsmanager:GetSecretValue", "iam:CreateUser", "sts:AssumeRole", "kms:Decrypt"), asks("role", "iam:AttachRolePolicy")))
}

var commandLine = regexp.MustCompile(`\baws (cloudformation|events|lambda|logs|sqs) ([a-z]+(?:-[a-z]+)+)`)

// The commands that the policies are for are found where they are written.
func TestThePoliciesHaveWhatTheScriptsAndTheRunbookCall(t *testing.T) {
	read := func(paths ...string) (text string) {
		for _, path := range paths {
			page, err := docs.Page(path)
			if err != nil {
				t.Fatal(err)
			}
			text += page
		}
		return text
	}
	// The one command whose name the script chooses.
	scheduled := strings.NewReplacer(`events "$action"`, "events disable-rule; aws events enable-rule").Replace(read("scripts/schedule.sh"))
	blocks, err := docs.Commands()
	if err != nil {
		t.Fatal(err)
	}
	runbook := ""
	for _, b := range blocks {
		if b.Page == "docs/runbook.md" {
			runbook += b.Text
		}
	}
	on := map[string]string{"cloudformation": "stack", "events": "rule", "lambda": "function", "logs": "log", "sqs": "queue"}
	for policy, text := range map[string]string{
		"iam-deploy.json":  read("scripts/deploy.sh", "scripts/destroy.sh"),
		"iam-operate.json": read("scripts/invoke.sh", "scripts/logs.sh") + scheduled + runbook,
	} {
		found := commandLine.FindAllStringSubmatch(text, -1)
		for _, m := range found {
			action := m[1] + ":"
			for word := range strings.SplitSeq(m[2], "-") {
				action += strings.ToUpper(word[:1]) + word[1:]
			}
			for _, name := range names[on[m[1]]] {
				if !allows(t, file(t, policy), request{action: action, resource: name}) {
					t.Errorf("%s lacks %s on %s", policy, action, name)
				}
			}
		}
		if len(found) < 5 {
			t.Errorf("%s: only %d commands", policy, len(found))
		}
	}
}
