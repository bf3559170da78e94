package stack

import (
	"encoding/json"
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
	"Tables":                 "ClientAccessTokens,adminapi.Tokens",
	"LogRetention":           "720h",
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
	"ConnectTimeout":         "1m30s",
	"Timeout":                "900",
	"MemorySize":             "512",
	"ReservedConcurrency":    "1",
	"Tracing":                "Active",
	"LogLevel":               "DEBUG",
	"LogRetentionDays":       "7",
	"PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary",
	"Architecture":           "x86_64",
	"UseFips":                "true",
	"AlarmEmail":             "operations@example.org",
	"AlarmTopicArn":          "arn:aws:sns:us-east-1:123456789012:operations",
	"StaleHours":             "25",
	"MaxExpiredAge":          "7200",
	"MetricsNamespace":       "Example/Tokens",
	"MetricsPerDatabase":     "false",
	"WithDashboard":          "false",
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
		if p.AllowedPattern == "" && p.AllowedValues == nil {
			t.Errorf("%s has no constraint", name)
		}
		if p.AllowedPattern != "" && (p.ConstraintDescription == "" || p.AllowedPattern[0] != '^' || !strings.HasSuffix(p.AllowedPattern, "$")) {
			t.Errorf("%s: pattern %s without a description, or not of the whole value", name, p.AllowedPattern)
		}
	}
}

// What the function itself takes and refuses is in its own template_test.go; these
// are the parameters that it never sees.
func TestParametersRefuseWhatWouldNotWork(t *testing.T) {
	stack := load(t)
	table := map[string]struct{ takes, refuses []string }{
		"SecretArn": {
			[]string{required["SecretArn"], others["SecretArn"], "arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:edfi/admin-AbCdEf"},
			[]string{"", "purge", "arn:aws:secretsmanager:us-east-1:123456789012:secret:purge", "arn:aws:secretsmanager:us-east-1:123456789012:secret:*"},
		},
		"KmsKeyArn": {
			[]string{"", others["KmsKeyArn"], "arn:aws:kms:us-east-1:123456789012:key/mrk-00000000000000000000000000000000"},
			[]string{"alias/purge", "arn:aws:kms:us-east-1:123456789012:alias/purge", "*"},
		},
		"DbCaLayerArn": {[]string{"", others["DbCaLayerArn"]}, []string{"rds-ca", "arn:aws:lambda:us-east-1:123456789012:layer:rds-ca"}},
		"SubnetIds":    {[]string{"", "subnet-0a", "subnet-0a,subnet-0b"}, []string{"subnet-1, subnet-2", "vpc-1", "subnet-1,", "subnet-x"}},
		"SecurityGroupId": {
			[]string{"", "sg-0a"}, []string{"default", "sg-0a,sg-0b", "sg-0x"},
		},
		"UseFips": {[]string{"true", "false"}, []string{"", "yes", "True"}},
		"ScheduleExpression": {
			[]string{
				"rate(1 minute)", "rate(30 minutes)", "rate(1 hour)", "rate(12 hours)", "rate(1 day)", "rate(7 days)",
				"cron(0 3 * * ? *)", "cron(0/30 * ? * MON-FRI *)", "cron(15 10 ? * 6L 2026-2030)", "cron(0 3 1,15 * ? *)", "cron(0 3 LW * ? *)", "cron(0 3 ? * 2#1 *)",
			},
			[]string{
				"", "30 minutes", "at(2030-01-01T00:00:00)", "rate(30minutes)", "rate(30 seconds)", "rate(1.5 hours)",
				"rate(1 minutes)", "rate(1 hours)", "rate(2 minute)", "rate(0 minutes)", "rate(0 minute)", "rate(01 hour)", "rate(-5 minutes)", "rate(15",
				"cron(0 3 * * *)", "cron(*/30 * * * *)", "cron(0 3 * * * *)", "cron(0 3 ? * ? *)", "cron(0 0 3 * * ? *)", "cron()", "cron(0 3 * * ? *", "cron(@daily)",
			},
		},
		"ScheduleState": {[]string{"ENABLED", "DISABLED"}, []string{"", "enabled", "ON"}},
		"Architecture":  {[]string{"arm64", "x86_64"}, []string{"", "amd64", "x86"}},
		"Timeout":       {[]string{"30", "99", "100", "300", "899", "900"}, []string{"", "29", "901", "1000", "300.5", "5m", "0300"}},
		"MemorySize": {
			[]string{"128", "129", "130", "199", "200", "256", "999", "1000", "9999", "10000", "10199", "10239", "10240"},
			[]string{"", "64", "127", "10241", "10300", "11000", "256.5", "256MB"},
		},
		"ReservedConcurrency": {[]string{"", "1", "999"}, []string{"0", "-1", "1000", "1.5"}},
		"Tracing":             {[]string{"PassThrough", "Active"}, []string{"", "true"}},
		"LogLevel":            {[]string{"INFO", "DEBUG", "TRACE"}, []string{"WARN", "ERROR", "info"}},
		"LogRetentionDays":    {[]string{"1", "30", "3653"}, []string{"0", "2", "30.5"}},
		"PermissionsBoundaryArn": {
			[]string{"", others["PermissionsBoundaryArn"], "arn:aws-cn:iam::aws:policy/PowerUserAccess"}, []string{"boundary", "arn:aws:iam::123456789012:role/x"},
		},
		"AlarmEmail": {
			[]string{"", "operations@example.org", "first.last+purge@mail.example.org"},
			[]string{"operations", "a@b", "operations@example.org,other@example.org", "a b@example.org", "https://example.org"},
		},
		"AlarmTopicArn": {[]string{"", others["AlarmTopicArn"]}, []string{"operations", "arn:aws:sns:us-east-1:123456789012:operations.fifo", "arn:aws:sqs:us-east-1:123456789012:operations"}},
		"StaleHours":    {[]string{"2", "9", "10", "25", "99", "100", "159", "160", "168"}, []string{"", "0", "1", "169", "170", "200", "1.5", "-2", "025"}},
		"MaxExpiredAge": {[]string{"60", "99", "100", "21600", "691200"}, []string{"", "0", "59", "60.5", "6h"}},
		"WithDashboard": {[]string{"true", "false"}, []string{"", "no"}},
	}
	tested := slices.Collect(maps.Keys(table))
	for _, value := range stack.Resources["PurgeTokens"]["Properties"].(object)["Environment"].(object)["Variables"].(object) {
		if name, ok := value.(object)["Ref"].(string); ok && table[name].takes == nil {
			tested = append(tested, name)
		}
	}
	slices.Sort(tested)
	if all := slices.Sorted(maps.Keys(stack.Parameters)); !slices.Equal(tested, all) {
		t.Errorf("tested are %q, of %q", tested, all)
	}
	for name, c := range table {
		p := stack.Parameters[name]
		for _, value := range c.takes {
			if err := p.refuse(value); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, value := range c.refuses {
			if p.refuse(value) == nil {
				t.Errorf("%s takes %q", name, value)
			}
		}
	}
}

func TestTheRuleRefusesSubnetsWithoutAGroup(t *testing.T) {
	stack := load(t)
	for name, c := range map[string]struct {
		values  map[string]string
		refused bool
	}{
		"neither": {nil, false}, "both": {only("SubnetIds", "SecurityGroupId"), false},
		"subnets": {only("SubnetIds"), true}, "a group": {only("SecurityGroupId"), true},
	} {
		r, refused := stack.resolver(t, c.values), false
		for _, rule := range stack.Rules {
			rule := rule.(object)
			for _, assertion := range rule["Assertions"].([]any) {
				refused = refused || r.condition(rule["RuleCondition"]) && !r.condition(assertion.(object)["Assert"])
			}
		}
		if refused != c.refused {
			t.Errorf("%s: refused %t", name, refused)
		}
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

const tags = `"Tags": [{"Key": "version", "Value": "dev"}]`

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
		"Tags": [{"Key": "lambda:createdBy", "Value": "SAM"}, {"Key": "version", "Value": "dev"}, {"Key": "commit", "Value": "unknown"}]}`)
	same(t, "log group", stack.with(t, nil)["LogGroup"], `{"LogGroupName": "/aws/lambda/purge-tokens-test", "RetentionInDays": "30", `+tags+`}`)
	if build := stack.Resources["PurgeTokens"]["Metadata"].(object)["BuildMethod"]; build != "makefile" {
		t.Errorf("build method %v", build)
	}

	f = stack.with(t, others)["PurgeTokens"]
	same(t, "VPC", f["VpcConfig"], `{"SubnetIds": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"], "SecurityGroupIds": ["sg-0123456789abcdef0"]}`)
	same(t, "layers", f["Layers"], `["arn:aws:lambda:us-east-1:123456789012:layer:rds-ca:1"]`)
	same(t, "its file", f["Environment"].(object)["Variables"].(object)["DB_CA_BUNDLE"], `"/opt/ca.pem"`)
	same(t, "reserve", f["ReservedConcurrentExecutions"], `"1"`)
	same(t, "architecture", f["Architectures"], `["x86_64"]`)
	same(t, "FIPS", f["Environment"].(object)["Variables"].(object)["AWS_USE_FIPS_ENDPOINT"], `"true"`)
}

func TestTheScheduleHandsOverAndItsFailuresAreKept(t *testing.T) {
	stack := load(t)
	r := stack.with(t, nil)
	same(t, "rule", r["Schedule"], `{
		"Description": "Purges expired tokens with purge-tokens-test",
		"ScheduleExpression": "rate(30 minutes)", "State": "ENABLED", `+tags+`,
		"Targets": [{"Id": "purge-tokens", "Arn": "<PurgeTokens.Arn>",
			"RetryPolicy": {"MaximumRetryAttempts": 1, "MaximumEventAgeInSeconds": 1500},
			"DeadLetterConfig": {"Arn": "<DeadLetters.Arn>"}}]}`)
	same(t, "permission", r["ScheduleMayInvoke"], `{"Action": "lambda:InvokeFunction", "FunctionName": "<PurgeTokens>",
		"Principal": "events.amazonaws.com", "SourceArn": "<Schedule.Arn>"}`)
	same(t, "invocations", r["PurgeTokensEventInvokeConfig"], `{
		"FunctionName": "<PurgeTokens>", "Qualifier": "$LATEST",
		"MaximumRetryAttempts": 1, "MaximumEventAgeInSeconds": 1500,
		"DestinationConfig": {"OnFailure": {"Destination": "<DeadLetters.Arn>"}}}`)
	same(t, "queue", r["DeadLetters"], `{"MessageRetentionPeriod": 1209600, "SqsManagedSseEnabled": true, `+tags+`}`)
	same(t, "queue policy", r["DeadLettersPolicy"], `{"Queues": ["<DeadLetters>"], "PolicyDocument": {
		"Version": "2012-10-17", "Statement": [{"Sid": "FromSchedule", "Effect": "Allow",
			"Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": "<DeadLetters.Arn>",
			"Condition": {"ArnEquals": {"aws:SourceArn": "<Schedule.Arn>"}}}]}}`)
	same(t, "rule, switched off", stack.with(t, others)["Schedule"]["State"], `"DISABLED"`)
}

func TestDashboardAndAlarmsNameOnlyMetricsThatTheFunctionEmits(t *testing.T) {
	stack := load(t)
	for name, c := range map[string]struct {
		values map[string]string
		by     string
	}{
		"a line for each database":     {nil, "FunctionName,Database"},
		"one line, where none has any": {only("MetricsPerDatabase"), "FunctionName"},
	} {
		r := stack.with(t, c.values)
		metrics, dimensions := emitted(t, r["PurgeTokens"]["Environment"].(object)["Variables"].(object))
		check := func(where, metric, dimension string) {
			t.Helper()
			// A server that can't be reached tells no age.
			if !slices.Contains(append(metrics, "OldestExpiredAge"), metric) || !slices.Contains(dimensions, dimension) {
				t.Errorf("%s: %s: %s by %s; the function emits %q by %q", name, where, metric, dimension, metrics, dimensions)
			}
		}
		var body struct {
			Widgets []struct {
				Type       string
				Properties struct {
					Title   string
					Metrics [][]object
					Alarms  []string
				}
			}
		}
		text := r["Dashboard"]["DashboardBody"].(string)
		if err := json.Unmarshal([]byte(text), &body); err != nil {
			t.Fatalf("%s: the dashboard is no JSON: %v\n%s", name, err, text)
		}
		search := regexp.MustCompile(`^SEARCH\('\{"([^"]+)","([^"]+)"(?:,"([^"]+)")?\} MetricName="([^"]+)" FunctionName="([^"]+)"', '(Sum|Maximum)', 1800\)$`)
		var searched, alarms []string
		for _, w := range body.Widgets {
			alarms = append(alarms, w.Properties.Alarms...)
			for _, m := range w.Properties.Metrics {
				s := search.FindStringSubmatch(m[0]["expression"].(string))
				if s == nil || s[1] != "EdFi/TokenPurge" || s[5] != "<PurgeTokens>" {
					t.Errorf("%s: %s: %v", name, w.Properties.Title, m)
					continue
				}
				by := strings.TrimSuffix(s[2]+","+s[3], ",")
				if check(w.Properties.Title, s[4], by); by != c.by {
					t.Errorf("%s: %s by %s", name, s[4], by)
				}
				searched = append(searched, s[4])
			}
		}
		slices.Sort(searched)
		if want := []string{"DeletedRows", "Duration", "Failures", "Incomplete", "OldestExpiredAge"}; !slices.Equal(searched, want) {
			t.Errorf("%s: the dashboard has %q", name, searched)
		}
		shown := 0
		for resource := range r {
			if strings.HasSuffix(resource, "Alarm") {
				if shown++; !slices.ContainsFunc(alarms, func(arn string) bool { return strings.HasSuffix(arn, ":<"+resource+">") }) {
					t.Errorf("%s: the dashboard lacks %s", name, resource)
				}
			}
		}
		if shown != len(alarms) {
			t.Errorf("%s: %d alarms on the dashboard, %d in the stack", name, len(alarms), shown)
		}
		for _, alarm := range []string{"StaleAlarm", "BacklogAlarm", "IncompleteAlarm"} {
			a := alarmOf(t, r[alarm])
			if check(alarm, a.metric, "FunctionName"); a.namespace != "EdFi/TokenPurge" {
				t.Errorf("%s: %s", alarm, a.namespace)
			}
		}
	}
	if _, ok := stack.with(t, only("WithDashboard"))["Dashboard"]; ok {
		t.Error("a dashboard that is not wanted")
	}
}

func TestOutputs(t *testing.T) {
	stack := load(t)
	got := stack.outputs(t, nil)
	want := []string{"AlarmsTell", "DashboardUrl", "DeadLetterQueueUrl", "FunctionArn", "FunctionName", "LogGroupName", "RuleName", "Version"}
	if all := slices.Sorted(maps.Keys(got)); !slices.Equal(all, want) {
		t.Errorf("outputs %q", all)
	}
	if got["Version"] != "dev (unknown)" {
		t.Errorf("version %s, which is not what a plain sam deploy has", got["Version"])
	}
	if _, ok := stack.outputs(t, only("WithDashboard"))["DashboardUrl"]; ok {
		t.Error("an address of a dashboard that is not there")
	}
	for partition, start := range map[string]string{
		"aws": "https://console.aws.amazon.com/", "aws-us-gov": "https://console.amazonaws-us-gov.com/", "aws-cn": "https://console.amazonaws.cn/",
	} {
		if url := stack.outputs(t, map[string]string{"AWS::Partition": partition})["DashboardUrl"]; !strings.HasPrefix(url, start) {
			t.Errorf("%s: %s", partition, url)
		}
	}
}

func TestAlarmsTellWhoeverIsNamed(t *testing.T) {
	stack := load(t)
	for name, c := range map[string]struct {
		values  map[string]string
		actions string
		says    []string
	}{
		"nobody":       {nil, `[]`, []string{"NOBODY"}},
		"an address":   {only("AlarmEmail"), `["<AlarmTopic>"]`, []string{others["AlarmEmail"]}},
		"a topic":      {only("AlarmTopicArn"), `["` + others["AlarmTopicArn"] + `"]`, []string{others["AlarmTopicArn"]}},
		"both of them": {only("AlarmEmail", "AlarmTopicArn"), `["<AlarmTopic>", "` + others["AlarmTopicArn"] + `"]`, []string{others["AlarmEmail"], others["AlarmTopicArn"]}},
	} {
		r, alarms := stack.with(t, c.values), 0
		for resource, properties := range r {
			if strings.HasSuffix(resource, "Alarm") {
				alarms++
				same(t, name+": "+resource, []any{properties["AlarmActions"], properties["OKActions"]}, `[`+c.actions+`,`+c.actions+`]`)
			}
		}
		if alarms != 5 {
			t.Errorf("%d alarms", alarms)
		}
		for _, who := range c.says {
			if tell := stack.outputs(t, c.values)["AlarmsTell"]; !strings.Contains(tell, who) {
				t.Errorf("%s: the output says %s", name, tell)
			}
		}
		_, topic := r["AlarmTopic"]
		if subscription, ok := r["AlarmSubscription"]; topic != (c.values["AlarmEmail"] != "") || ok != topic {
			t.Errorf("%s: topic %t, subscription %t", name, topic, ok)
		} else if ok {
			same(t, "subscription", subscription, `{"TopicArn": "<AlarmTopic>", "Protocol": "email", "Endpoint": "operations@example.org"}`)
		}
	}
}

// The tags say which version made a thing; the deployment fills the mapping in.
func TestEveryThingThatTakesATagHasTheVersion(t *testing.T) {
	stack := load(t)
	stack.Mappings["Build"]["This"] = object{"Version": "v1.2.3", "Commit": "0123456789ab"}
	r := stack.with(t, only("AlarmEmail"))
	for _, name := range []string{"PurgeTokens", "Role", "LogGroup", "DeadLetters", "AlarmTopic", "Schedule"} {
		tags, _ := r[name]["Tags"].([]any)
		if !slices.ContainsFunc(tags, func(tag any) bool { return tag.(object)["Key"] == "version" && tag.(object)["Value"] == "v1.2.3" }) {
			t.Errorf("%s has the tags %v", name, tags)
		}
	}
	if version := stack.outputs(t, nil)["Version"]; version != "v1.2.3 (0123456789ab)" {
		t.Errorf("version %s", version)
	}
}

// GovCloud and China are partitions with names and hosts of their own.
func TestNothingIsTiedToOnePartition(t *testing.T) {
	stack := load(t)
	for _, p := range []struct{ partition, region, suffix string }{{"aws-us-gov", "us-gov-west-1", "amazonaws.com"}, {"aws-cn", "cn-north-1", "amazonaws.com.cn"}} {
		values := map[string]string{"AWS::Partition": p.partition, "AWS::Region": p.region, "AWS::URLSuffix": p.suffix, "SecretArn": required["SecretArn"]}
		maps.Copy(values, others)
		delete(values, "WithDashboard")
		for name, value := range values {
			values[name] = strings.NewReplacer("arn:aws:", "arn:"+p.partition+":", region, p.region).Replace(value)
		}
		text := pretty(stack.with(t, values)) + pretty(stack.outputs(t, values))
		for _, wrong := range []string{"arn:aws:", region, "console.aws.amazon.com"} {
			if strings.Contains(text, wrong) {
				t.Errorf("%s: %s", p.partition, wrong)
			}
		}
		for _, right := range []string{"secretsmanager." + p.region + "." + p.suffix, "sqs." + p.region + "." + p.suffix} {
			if !strings.Contains(text, `"`+right+`"`) {
				t.Errorf("%s: no %s", p.partition, right)
			}
		}
	}
}

func TestTheKeyEncryptsLogAndQueueAsWell(t *testing.T) {
	stack := load(t)
	r, key := stack.with(t, only("KmsKeyArn")), `"`+others["KmsKeyArn"]+`"`
	same(t, "log group", r["LogGroup"]["KmsKeyId"], key)
	same(t, "queue", []any{r["DeadLetters"]["KmsMasterKeyId"], r["DeadLetters"]["SqsManagedSseEnabled"]}, `[`+key+`, null]`)
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
