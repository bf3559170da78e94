package stack

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// others has for each parameter a value besides its default.
var others = map[string]string{
	"SecretArn":              "arn:aws:secretsmanager:us-east-1:123456789012:secret:rds!cluster-1-AbCdEf",
	"KmsKeyArn":              "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-0000-0000-000000000000",
	"Databases":              "EdFi_Admin*,!EdFi_Admin_Template",
	"DbEngine":               "postgres",
	"DbHost":                 "db.example.com",
	"DbPort":                 "5433",
	"DbTls":                  "disable",
	"DbCaLayerArn":           "arn:aws:lambda:us-east-1:123456789012:layer:rds-ca:1",
	"SubnetIds":              "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
	"SecurityGroupId":        "sg-0123456789abcdef0",
	"ScheduleExpression":     "cron(0 3 * * ? *)",
	"ScheduleState":          "DISABLED",
	"GracePeriod":            "1h30m",
	"MaxRows":                "1000000",
	"BatchSize":              "1000",
	"BatchTarget":            "80ms",
	"Concurrency":            "2",
	"ParallelDatabases":      "8",
	"Pause":                  "50ms",
	"LockTimeout":            "1s",
	"StopBefore":             "20s",
	"Timeout":                "900",
	"MemorySize":             "512",
	"ReservedConcurrency":    "1",
	"Tracing":                "Active",
	"LogLevel":               "DEBUG",
	"LogRetentionDays":       "7",
	"PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary",
	"AlarmTopicArn":          "arn:aws:sns:us-east-1:123456789012:operations",
	"StaleHalfHours":         "48",
	"MaxExpiredAge":          "7200",
	"MetricsNamespace":       "Example/Tokens",
}

// together are parameters that only count with others.
var together = map[string]map[string]string{
	"SubnetIds":       {"SecurityGroupId": others["SecurityGroupId"]},
	"SecurityGroupId": {"SubnetIds": others["SubnetIds"]},
}

func TestEveryParameterReachesAResource(t *testing.T) {
	stack := load(t)
	for name := range stack.Parameters {
		before := stack.with(t, together[name])
		values := map[string]string{name: others[name]}
		maps.Copy(values, together[name])
		if pretty(before) == pretty(stack.with(t, values)) {
			t.Errorf("%s=%q changes no resource", name, others[name])
		}
	}
}

func TestEveryParameterIsExplainedAndLimited(t *testing.T) {
	stack := load(t)
	var shown []string
	for _, g := range stack.Metadata["AWS::CloudFormation::Interface"].(object)["ParameterGroups"].([]any) {
		for _, name := range g.(object)["Parameters"].([]any) {
			shown = append(shown, name.(string))
		}
	}
	slices.Sort(shown)
	if all := slices.Sorted(maps.Keys(stack.Parameters)); !slices.Equal(shown, all) {
		t.Errorf("parameters in groups %q, all %q", shown, all)
	}
	for name, p := range stack.Parameters {
		if p.Description == "" {
			t.Errorf("%s has no description", name)
		}
		if (p.Default == nil) != (required[name] != "") {
			t.Errorf("%s: default %v", name, p.Default)
		}
		if p.AllowedPattern == "" && p.AllowedValues == nil && p.MinValue == nil && p.MaxLength == nil {
			t.Errorf("%s has no constraint", name)
		}
		if p.AllowedPattern != "" && (p.ConstraintDescription == "" || p.AllowedPattern[0] != '^' || !strings.HasSuffix(p.AllowedPattern, "$")) {
			t.Errorf("%s: pattern %s without a description, or not of the whole value", name, p.AllowedPattern)
		}
	}
}

func TestParametersRefuseWhatWouldNotWork(t *testing.T) {
	stack := load(t)
	for name, values := range map[string][]string{
		"SecretArn":           {"", "purge", "arn:aws:secretsmanager:us-east-1:123456789012:secret:purge", "arn:aws:secretsmanager:us-east-1:123456789012:secret:*"},
		"KmsKeyArn":           {"alias/purge", "arn:aws:kms:us-east-1:123456789012:alias/purge", "*"},
		"DbEngine":            {"mysql"},
		"DbHost":              {"host name", "host,1433"},
		"DbPort":              {"0", "065", "65536", "65600", "66000", "70000", "100000", "x"},
		"SubnetIds":           {"subnet-1, subnet-2", "vpc-1", "subnet-1,"},
		"ScheduleExpression":  {"30 minutes", "at(2030-01-01T00:00:00)"},
		"GracePeriod":         {"", "1", "1d", "-1h", "1 h"},
		"LockTimeout":         {"", "1", "0s", "0m0s", "0.5ms", "00ms"},
		"MaxRows":             {"-1"},
		"BatchSize":           {"0", "1000001", "1e3"},
		"ReservedConcurrency": {"0", "-1"},
		"Timeout":             {"29", "901"},
		"MemorySize":          {"64"},
		"LogLevel":            {"WARN", "ERROR"},
		"LogRetentionDays":    {"0", "2"},
		"StaleHalfHours":      {"49"},
		"MetricsNamespace":    {"", "a b", `a"b`},
	} {
		for _, value := range values {
			if stack.Parameters[name].refuse(value) == nil {
				t.Errorf("%s takes %q", name, value)
			}
		}
	}
	for name, values := range map[string][]string{
		"DbPort":      {"", "1", "1433", "10000", "59999", "64999", "65499", "65529", "65535"},
		"LockTimeout": {"1ms", "500ms", "2s", "1.5s", "10s", "1m0s"},
	} {
		for _, value := range values {
			if err := stack.Parameters[name].refuse(value); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if !strings.HasPrefix(stack.Parameters["MetricsNamespace"].AllowedPattern, "^(?!AWS/)") {
		t.Error("MetricsNamespace takes AWS/")
	}
}

// The variables are those that config.go reads, one by one.
func TestTheFunctionGetsEveryVariableThatItReads(t *testing.T) {
	stack := load(t)
	file, err := parser.ParseFile(token.NewFileSet(), root+"/functions/purge-tokens/config.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		name, isText := call.Args[0].(*ast.BasicLit)
		if on, ok := method.X.(*ast.Ident); ok && on.Name == "env" && isText && name.Kind == token.STRING {
			text, _ := strconv.Unquote(name.Value)
			read[text] = true
		}
		return true
	})
	delete(read, "AWS_LAMBDA_FUNCTION_NAME")
	variables := stack.with(t, nil)["PurgeTokens"]["Environment"].(object)["Variables"].(object)
	got, want := slices.Sorted(maps.Keys(variables)), slices.Sorted(maps.Keys(read))
	if !slices.Equal(got, want) {
		t.Errorf("the template sets %q, config.go reads %q", got, want)
	}
}

func TestTheFunction(t *testing.T) {
	stack := load(t)
	f := stack.with(t, nil)["PurgeTokens"]
	delete(f, "Environment")
	same(t, "function", f, `{
		"FunctionName": "purge-tokens-test", "Description": "Deletes expired rows of dbo.ClientAccessTokens.",
		"Runtime": "provided.al2023", "Architectures": ["arm64"], "Handler": "bootstrap",
		"Code": {"S3Bucket": "code", "S3Key": "bootstrap.zip"},
		"MemorySize": "256", "Timeout": "300", "Role": "<Role.Arn>", "TracingConfig": {"Mode": "PassThrough"},
		"LoggingConfig": {"LogGroup": "<LogGroup>", "LogFormat": "JSON", "ApplicationLogLevel": "INFO", "SystemLogLevel": "INFO"},
		"Tags": [{"Key": "lambda:createdBy", "Value": "SAM"}]}`)
	same(t, "log group", stack.with(t, nil)["LogGroup"], `{"LogGroupName": "/aws/lambda/purge-tokens-test", "RetentionInDays": "30"}`)
	if build := stack.Resources["PurgeTokens"]["Metadata"].(object)["BuildMethod"]; build != "makefile" {
		t.Errorf("build method %v", build)
	}

	f = stack.with(t, others)["PurgeTokens"]
	same(t, "VPC", f["VpcConfig"], `{"SubnetIds": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"], "SecurityGroupIds": ["sg-0123456789abcdef0"]}`)
	same(t, "layers", f["Layers"], `["arn:aws:lambda:us-east-1:123456789012:layer:rds-ca:1"]`)
	same(t, "its file", f["Environment"].(object)["Variables"].(object)["DB_CA_BUNDLE"], `"/opt/ca.pem"`)
	same(t, "reserve", f["ReservedConcurrentExecutions"], `"1"`)
}

func TestTheScheduleHandsOverAndItsFailuresAreKept(t *testing.T) {
	stack := load(t)
	r := stack.with(t, nil)
	same(t, "rule", r["Schedule"], `{
		"Description": "Purges expired tokens with purge-tokens-test",
		"ScheduleExpression": "rate(30 minutes)", "State": "ENABLED",
		"Targets": [{"Id": "purge-tokens", "Arn": "<PurgeTokens.Arn>",
			"RetryPolicy": {"MaximumRetryAttempts": 1, "MaximumEventAgeInSeconds": 1500},
			"DeadLetterConfig": {"Arn": "<DeadLetters.Arn>"}}]}`)
	same(t, "permission", r["ScheduleMayInvoke"], `{"Action": "lambda:InvokeFunction", "FunctionName": "<PurgeTokens>",
		"Principal": "events.amazonaws.com", "SourceArn": "<Schedule.Arn>"}`)
	same(t, "invocations", r["PurgeTokensEventInvokeConfig"], `{
		"FunctionName": "<PurgeTokens>", "Qualifier": "$LATEST",
		"MaximumRetryAttempts": 1, "MaximumEventAgeInSeconds": 1500,
		"DestinationConfig": {"OnFailure": {"Destination": "<DeadLetters.Arn>"}}}`)
	same(t, "queue", r["DeadLetters"], `{"MessageRetentionPeriod": 1209600, "SqsManagedSseEnabled": true}`)
	same(t, "queue policy", r["DeadLettersPolicy"], `{"Queues": ["<DeadLetters>"], "PolicyDocument": {
		"Version": "2012-10-17", "Statement": [{"Sid": "FromSchedule", "Effect": "Allow",
			"Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": "<DeadLetters.Arn>",
			"Condition": {"ArnEquals": {"aws:SourceArn": "<Schedule.Arn>"}}}]}}`)
	same(t, "rule, switched off", stack.with(t, others)["Schedule"]["State"], `"DISABLED"`)
}

// statements answers what the role may do, one line for each statement.
func statements(t *testing.T, role object) []string {
	t.Helper()
	if role["ManagedPolicyArns"] != nil {
		t.Error("managed policies")
	}
	list := func(v any) string { return strings.Trim(fmt.Sprint(v), "[]") }
	var lines []string
	for _, policy := range role["Policies"].([]any) {
		for _, s := range policy.(object)["PolicyDocument"].(object)["Statement"].([]any) {
			s := s.(object)
			line := fmt.Sprintf("%s %s on %s", s["Effect"], list(s["Action"]), list(s["Resource"]))
			if c, ok := s["Condition"]; ok {
				text, _ := json.Marshal(c)
				line += " if " + string(text)
			}
			lines = append(lines, line)
		}
	}
	return lines
}

func TestTheRoleMayDoNothingElse(t *testing.T) {
	stack := load(t)
	only := func(names ...string) map[string]string {
		values := map[string]string{}
		for _, name := range names {
			values[name] = others[name]
		}
		return values
	}
	least := []string{
		"Allow secretsmanager:GetSecretValue on " + required["SecretArn"],
		"Allow logs:CreateLogStream logs:PutLogEvents on <LogGroup.Arn>",
		"Allow sqs:SendMessage on <DeadLetters.Arn>",
	}
	key := []string{
		`Allow kms:Decrypt on ` + others["KmsKeyArn"] + ` if {"StringEquals":{` +
			`"kms:EncryptionContext:SecretARN":"` + required["SecretArn"] + `",` +
			`"kms:ViaService":"secretsmanager.us-east-1.amazonaws.com"}}`,
	}
	const ec2 = "arn:aws:ec2:us-east-1:123456789012:"
	network := []string{
		"Allow ec2:DescribeNetworkInterfaces ec2:DescribeSubnets on *",
		"Allow ec2:CreateNetworkInterface ec2:DeleteNetworkInterface ec2:AssignPrivateIpAddresses ec2:UnassignPrivateIpAddresses" +
			" on " + ec2 + "network-interface/* " + ec2 + "security-group/" + others["SecurityGroupId"] + " " + ec2 + "subnet/*",
		`Deny ec2:* on * if {"ArnEquals":{"lambda:SourceFunctionArn":"arn:aws:lambda:us-east-1:123456789012:function:purge-tokens-test"}}`,
	}
	traces := []string{"Allow xray:PutTraceSegments xray:PutTelemetryRecords on *"}

	for name, c := range map[string]struct {
		values map[string]string
		want   []string
	}{
		"least":        {nil, least},
		"key":          {only("KmsKeyArn"), slices.Concat(least, key)},
		"VPC":          {only("SubnetIds", "SecurityGroupId"), slices.Concat(least, network)},
		"key and VPC":  {only("KmsKeyArn", "SubnetIds", "SecurityGroupId"), slices.Concat(least, key, network)},
		"with tracing": {only("Tracing"), slices.Concat(least, traces)},
	} {
		role := stack.with(t, c.values)["Role"]
		if got := statements(t, role); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
		}
		if _, ok := role["PermissionsBoundary"]; ok {
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

func TestAlarms(t *testing.T) {
	r := load(t).with(t, nil)
	const ofFunction = `"Dimensions": [{"Name": "FunctionName", "Value": "<PurgeTokens>"}]`
	for name, want := range map[string]string{
		"FailedAlarm": `{"AlarmName": "purge-tokens-test-failed", "Namespace": "AWS/Lambda", "MetricName": "Errors", ` + ofFunction + `,
			"Statistic": "Sum", "Period": 300, "EvaluationPeriods": 1, "Threshold": 0,
			"ComparisonOperator": "GreaterThanThreshold", "TreatMissingData": "notBreaching"}`,
		"StaleAlarm": `{"AlarmName": "purge-tokens-test-stale", "EvaluationPeriods": "3", "Threshold": 1,
			"ComparisonOperator": "LessThanThreshold", "TreatMissingData": "breaching", "Metrics": [
				{"Id": "runs", "ReturnData": false, "MetricStat": {"Stat": "SampleCount", "Period": 1800,
					"Metric": {"Namespace": "EdFi/TokenPurge", "MetricName": "Duration", ` + ofFunction + `}}},
				{"Id": "filled", "Label": "Runs", "Expression": "FILL(runs, 0)"}]}`,
		"BacklogAlarm": `{"AlarmName": "purge-tokens-test-backlog", "Namespace": "EdFi/TokenPurge", "MetricName": "OldestExpiredAge", ` + ofFunction + `,
			"Statistic": "Maximum", "Period": 1800, "EvaluationPeriods": 2, "Threshold": "21600",
			"ComparisonOperator": "GreaterThanThreshold", "TreatMissingData": "ignore"}`,
		"DeadLettersAlarm": `{"AlarmName": "purge-tokens-test-dead-letters", "Namespace": "AWS/SQS", "MetricName": "ApproximateNumberOfMessagesVisible",
			"Dimensions": [{"Name": "QueueName", "Value": "<DeadLetters.QueueName>"}],
			"Statistic": "Maximum", "Period": 300, "EvaluationPeriods": 1, "Threshold": 0,
			"ComparisonOperator": "GreaterThanThreshold", "TreatMissingData": "notBreaching"}`,
	} {
		if r[name]["AlarmDescription"] == "" {
			t.Errorf("%s has no description", name)
		}
		delete(r[name], "AlarmDescription")
		same(t, name, r[name], want)
	}

	topic := `["` + others["AlarmTopicArn"] + `"]`
	for name, resource := range load(t).with(t, others) {
		if strings.HasSuffix(name, "Alarm") {
			same(t, name, resource["AlarmActions"], topic)
			same(t, name, resource["OKActions"], topic)
		}
	}

	// CloudWatch refuses an alarm that looks further back than a day.
	if most := *load(t).Parameters["StaleHalfHours"].MaxValue; most*1800 > 86400 {
		t.Errorf("StaleHalfHours up to %v", most)
	}
}

func TestDashboardAndAlarmsNameOnlyMetricsThatTheFunctionEmits(t *testing.T) {
	r := load(t).with(t, nil)
	metrics, dimensions := emitted(t, r["PurgeTokens"]["Environment"].(object)["Variables"].(object))
	check := func(where, metric, dimension string) {
		t.Helper()
		if !slices.Contains(metrics, metric) || !slices.Contains(dimensions, dimension) {
			t.Errorf("%s: %s by %s; the function emits %q by %q", where, metric, dimension, metrics, dimensions)
		}
	}

	var body struct {
		Widgets []struct {
			Type       string
			Properties struct {
				Title   string
				Metrics [][]any
				Alarms  []string
			}
		}
	}
	text := r["Dashboard"]["DashboardBody"].(string)
	if err := json.Unmarshal([]byte(text), &body); err != nil {
		t.Fatalf("the dashboard is no JSON: %v\n%s", err, text)
	}
	search := regexp.MustCompile(`^SEARCH\('\{"([^"]+)","([^"]+)","([^"]+)"\} MetricName="([^"]+)" FunctionName="([^"]+)"', '(Sum|Maximum)', 1800\)$`)
	searched, alarms := map[string]bool{}, 0
	for _, w := range body.Widgets {
		alarms += len(w.Properties.Alarms)
		for _, m := range w.Properties.Metrics {
			if e, ok := m[0].(map[string]any); ok {
				s := search.FindStringSubmatch(e["expression"].(string))
				if s == nil || s[1] != "EdFi/TokenPurge" || s[5] != "<PurgeTokens>" {
					t.Errorf("%s: %v", w.Properties.Title, e)
					continue
				}
				check(w.Properties.Title, s[4], s[2]+","+s[3])
				searched[s[4]] = true
				continue
			}
			if m[0] != "EdFi/TokenPurge" || m[3] != "<PurgeTokens>" {
				t.Errorf("%s: %v", w.Properties.Title, m)
			}
			check(w.Properties.Title, m[1].(string), m[2].(string))
		}
	}
	for _, name := range []string{"DeletedRows", "Duration", "Failures", "OldestExpiredAge"} {
		if !searched[name] {
			t.Errorf("the dashboard has no %s for each database", name)
		}
	}
	if alarms != 4 {
		t.Errorf("the dashboard shows %d alarms", alarms)
	}

	check("stale", r["StaleAlarm"]["Metrics"].([]any)[0].(object)["MetricStat"].(object)["Metric"].(object)["MetricName"].(string), "FunctionName")
	check("backlog", r["BacklogAlarm"]["MetricName"].(string), "FunctionName")
}

func TestOutputs(t *testing.T) {
	stack := load(t)
	got := slices.Sorted(maps.Keys(stack.Outputs))
	want := []string{"DashboardUrl", "DeadLetterQueueUrl", "FunctionArn", "FunctionName", "LogGroupName", "RuleName"}
	if !slices.Equal(got, want) {
		t.Errorf("outputs %q", got)
	}
}

func TestOperatorsMayInvokeAndNoMore(t *testing.T) {
	text, err := os.ReadFile(root + "/infra/iam-invoke.json")
	if err != nil {
		t.Fatal(err)
	}
	var policy any
	if err := json.Unmarshal(text, &policy); err != nil {
		t.Fatal(err)
	}
	same(t, "policy", policy, `{"Version": "2012-10-17", "Statement": [{"Sid": "InvokePurge", "Effect": "Allow",
		"Action": "lambda:InvokeFunction", "Resource": "arn:aws:lambda:us-east-1:123456789012:function:purge-tokens-prod"}]}`)
}

// The example's values are accepted, and its stacks are those that the scripts
// take by default.
func TestSamconfig(t *testing.T) {
	stack := load(t)
	for stage, values := range stages(t) {
		if name := values["stack_name"]; name != "purge-tokens-"+stage {
			t.Errorf("%s: stack %s", stage, name)
		}
		delete(values, "stack_name")
		stack.with(t, values)
	}
}

// stages reads the stack's name and the parameters of infra/samconfig.toml.
func stages(t *testing.T) map[string]map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "infra/samconfig.toml"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]map[string]string{}
	var stage string
	table := regexp.MustCompile(`^\[(\w+)\.\w+\.parameters\]$`)
	name := regexp.MustCompile(`^stack_name = "(.*)"$`)
	value := regexp.MustCompile(`^    "(\w+)=(.*)",$`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if m := table.FindStringSubmatch(line); m != nil {
			if stage = m[1]; found[stage] == nil {
				found[stage] = map[string]string{}
			}
		} else if m := name.FindStringSubmatch(line); m != nil {
			found[stage]["stack_name"] = m[1]
		} else if m := value.FindStringSubmatch(line); m != nil {
			found[stage][m[1]] = m[2]
		}
	}
	if len(found) != 2 || len(found["prod"]) < 5 {
		t.Fatalf("read only %v", found)
	}
	return found
}
