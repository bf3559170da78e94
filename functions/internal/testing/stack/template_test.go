// Package stack tests what an operator deploys: the translation of
// template.yaml, infra/, and the scripts. A local imitation of AWS deploys the
// stack, runs the state machine and serves the scripts. It needs the Python tools
// that make validate installs; without them its tests are skipped.
package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	root    = "../../../.."
	tools   = root + "/.venv/bin/"
	account = "123456789012" // of the imitation, too
	region  = "us-east-1"
)

// object is a JSON object.
type object = map[string]any

// template is CloudFormation as JSON.
type template struct {
	Metadata   object
	Mappings   map[string]map[string]object
	Parameters map[string]parameter
	Rules      object
	Conditions object
	Resources  map[string]object
	Outputs    map[string]object
}

type parameter struct {
	Type                  string
	Description           string
	Default               any
	AllowedPattern        string
	AllowedValues         []any
	MaxLength             *float64
	ConstraintDescription string
}

// needTools skips the test where the Python tools are not installed.
func needTools(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(tools + "python"); errors.Is(err, os.ErrNotExist) && os.Getenv("STACK_TOOLS") != "required" {
		t.Skip("no .venv; scripts/venv.sh installs the tools")
	}
}

// translation is template.yaml as AWS translates it.
var translation = sync.OnceValues(func() ([]byte, error) {
	c := exec.Command(tools+"python", "translate.py", root+"/template.yaml")
	c.Stderr = os.Stderr
	return c.Output()
})

func load(t *testing.T) template {
	t.Helper()
	needTools(t)
	text, err := translation()
	if err != nil {
		t.Fatal(err)
	}
	var stack template
	if err := json.Unmarshal(text, &stack); err != nil {
		t.Fatal(err)
	}
	return stack
}

// stackName is the value of AWS::StackName.
const stackName = "purge-tokens-test"

// required are the parameters that have no default.
var required = map[string]string{
	"SecretArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:purge-AbCdEf",
}

// with resolves the template for some values of its parameters, as
// CloudFormation does; a reference to a resource becomes "<its name>", an
// attribute "<its name.attribute>".
func (s template) with(t *testing.T, values map[string]string) map[string]object {
	t.Helper()
	r := s.resolver(t, values)
	resources := map[string]object{}
	for name, resource := range s.Resources {
		if c, ok := resource["Condition"]; !ok || r.condition(c) {
			resources[name] = r.resolve(resource["Properties"]).(object)
		}
	}
	return resources
}

// outputs resolves the outputs as with does the resources.
func (s template) outputs(t *testing.T, values map[string]string) map[string]string {
	t.Helper()
	r := s.resolver(t, values)
	outputs := map[string]string{}
	for name, output := range s.Outputs {
		if c, ok := output["Condition"]; !ok || r.condition(c) {
			outputs[name] = r.resolve(output["Value"]).(string)
		}
	}
	return outputs
}

// resolver checks the values, some of which may be those of pseudo parameters, and
// stands ready to resolve.
func (s template) resolver(t *testing.T, values map[string]string) resolver {
	t.Helper()
	r := resolver{t, s, map[string]string{
		"AWS::StackName": stackName, "AWS::Region": region, "AWS::AccountId": account,
		"AWS::Partition": "aws", "AWS::URLSuffix": "amazonaws.com",
	}}
	for name, p := range s.Parameters {
		if p.Default != nil {
			r.values[name] = fmt.Sprint(p.Default)
		}
	}
	maps.Copy(r.values, required)
	for name, value := range values {
		if _, ok := s.Parameters[name]; !ok && !strings.HasPrefix(name, "AWS::") {
			t.Fatalf("no parameter %s", name)
		}
		r.values[name] = value
	}
	for name, p := range s.Parameters {
		if err := p.refuse(r.values[name]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return r
}

// refuse returns why the parameter does not take the value. Go's patterns lack the
// look ahead of Java's, which one parameter has.
func (p parameter) refuse(value string) error {
	pattern, notAWS := strings.CutPrefix(p.AllowedPattern, `^(?!AWS/)`)
	if notAWS {
		pattern = "^" + pattern
	}
	switch {
	case p.Type != "String" && p.AllowedValues == nil:
		return fmt.Errorf("a %s without a list of values", p.Type)
	case pattern != "" && !regexp.MustCompile(pattern).MatchString(value) || notAWS && strings.HasPrefix(value, "AWS/"):
		return fmt.Errorf("%q does not match %s", value, p.AllowedPattern)
	case p.AllowedValues != nil && !slices.ContainsFunc(p.AllowedValues, func(v any) bool { return fmt.Sprint(v) == value }):
		return fmt.Errorf("%q is not one of %v", value, p.AllowedValues)
	case p.MaxLength != nil && float64(len(value)) > *p.MaxLength:
		return fmt.Errorf("longer than %v", *p.MaxLength)
	}
	return nil
}

// resolver evaluates those of CloudFormation's functions that the template uses.
type resolver struct {
	t      *testing.T
	stack  template
	values map[string]string
}

// absent is the value of AWS::NoValue.
type absent struct{}

func (r resolver) resolve(v any) any {
	switch v := v.(type) {
	case []any:
		list := []any{}
		for _, item := range v {
			if item = r.resolve(item); item != any(absent{}) {
				list = append(list, item)
			}
		}
		return list
	case object:
		if len(v) == 1 {
			for name, argument := range v {
				if name == "Ref" || strings.HasPrefix(name, "Fn::") {
					return r.function(name, argument)
				}
			}
		}
		out := object{}
		for name, value := range v {
			if _, gone := r.resolve(value).(absent); !gone {
				out[name] = r.resolve(value)
			}
		}
		return out
	}
	return v
}

func (r resolver) function(name string, argument any) any {
	list, _ := argument.([]any)
	switch name {
	case "Ref":
		return r.reference(argument.(string))
	case "Fn::GetAtt":
		return r.reference(list[0].(string) + "." + list[1].(string))
	case "Fn::If":
		if r.condition(list[0]) {
			return r.resolve(list[1])
		}
		return r.resolve(list[2])
	case "Fn::Split":
		var parts []any
		for part := range strings.SplitSeq(r.resolve(list[1]).(string), list[0].(string)) {
			parts = append(parts, part)
		}
		return parts
	case "Fn::FindInMap":
		value, ok := r.stack.Mappings[r.resolve(list[0]).(string)][r.resolve(list[1]).(string)][r.resolve(list[2]).(string)]
		if !ok {
			r.t.Errorf("no %v in the mappings", list)
		}
		return value
	case "Fn::Sub":
		text, own := argument, object{}
		if list != nil { // a text and values of its own
			text, own = list[0], list[1].(object)
		}
		return regexp.MustCompile(`\$\{([^}]+)\}`).ReplaceAllStringFunc(text.(string), func(m string) string {
			name := m[2 : len(m)-1]
			if value, ok := own[name]; ok {
				return r.resolve(value).(string)
			}
			return r.reference(name).(string)
		})
	}
	r.t.Fatalf("the test knows no function %s", name)
	return nil
}

func (r resolver) reference(name string) any {
	if name == "AWS::NoValue" {
		return absent{}
	}
	if value, ok := r.values[name]; ok {
		return value
	}
	resource, _, _ := strings.Cut(name, ".")
	if _, ok := r.stack.Resources[resource]; !ok {
		r.t.Errorf("a reference to %s, which is not there", name)
	}
	return "<" + name + ">"
}

// condition evaluates a condition, which is a name or an expression.
func (r resolver) condition(c any) bool {
	if name, ok := c.(string); ok {
		return r.condition(r.stack.Conditions[name])
	}
	for name, argument := range c.(object) {
		list := argument.([]any)
		switch name {
		case "Fn::Not":
			return !r.condition(list[0])
		case "Fn::And":
			return !slices.ContainsFunc(list, func(c any) bool { return !r.condition(c) })
		case "Fn::Equals":
			return fmt.Sprint(r.resolve(list[0])) == fmt.Sprint(r.resolve(list[1]))
		}
		r.t.Fatalf("the test knows no condition %s", name)
	}
	return false
}

// pretty writes v so that a difference can be read.
func pretty(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// same compares as JSON.
func same(t *testing.T, what string, got any, want string) {
	t.Helper()
	var w any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if g := pretty(got); g != pretty(w) {
		t.Errorf("%s\n got %s\nwant %s", what, g, pretty(w))
	}
}
