package stack

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// loadNetwork reads infra/network.yaml, for some values of its parameters.
func loadNetwork(t *testing.T, values map[string]string) (template, map[string]object) {
	t.Helper()
	needTools(t)
	const toJSON = `import json, sys; from samtranslator.yaml_helper import yaml_parse; json.dump(yaml_parse(open(sys.argv[1])), sys.stdout)`
	text, err := exec.Command(tools+"python", "-c", toJSON, root+"/infra/network.yaml").Output()
	if err != nil {
		t.Fatal(err)
	}
	var stack template
	if err := json.Unmarshal(text, &stack); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{
		"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2", "DatabaseSecurityGroupId": "sg-1", "SecretArn": "",
	}
	for name, value := range values {
		all[name] = value
	}
	for name, p := range stack.Parameters {
		p.Type = "String" // the resolver knows no other: neither numbers nor what there is in the account
		stack.Parameters[name] = p
	}
	for i, c := range stack.Conditions {
		stack.Conditions[i] = withoutLists(c, all)
	}
	for _, r := range stack.Resources {
		r["Properties"] = withoutLists(r["Properties"], all)
	}
	return stack, stack.with(t, all)
}

// withoutLists works out the functions of lists, and conditions that name another:
// the resolver of the tests knows neither.
func withoutLists(v any, values map[string]string) any {
	switch v := v.(type) {
	case []any:
		list := []any{}
		for _, item := range v {
			list = append(list, withoutLists(item, values))
		}
		return list
	case object:
		out := object{}
		for name, value := range v {
			value = withoutLists(value, values)
			args, _ := value.([]any)
			switch name {
			case "Condition":
				return value // by its name alone
			case "Fn::Join":
				var parts []string
				for _, part := range args[1].([]any) {
					if of, ok := part.(object); ok {
						part = values[of["Ref"].(string)]
					}
					parts = append(parts, part.(string))
				}
				return strings.Join(parts, args[0].(string))
			case "Fn::Split":
				return strings.Split(args[1].(string), args[0].(string))
			case "Fn::Select":
				index, _ := strconv.Atoi(fmt.Sprint(args[0]))
				return args[1].([]string)[index]
			}
			out[name] = value
		}
		return out
	}
	return v
}

// doors returns the rules of a security group that lead to or from a place:
// protocol, port, place.
func doors(rules ...any) (all []string) {
	for _, r := range rules {
		r, ok := r.(object)
		if !ok {
			continue
		}
		place := r["CidrIp"]
		if group, ok := r["DestinationSecurityGroupId"]; ok {
			place = group
		}
		all = append(all, fmt.Sprint(r["IpProtocol"], " ", r["FromPort"], " ", place))
	}
	slices.Sort(all)
	return all
}

func TestTheNetworkOpensNoMoreThanItIsTold(t *testing.T) {
	t.Parallel()
	five := []string{"10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "100.64.0.0/24"}
	for name, c := range map[string]struct {
		values            map[string]string
		out, into, policy string
		service           string
	}{
		"by what the VPC has": {nil, "tcp 443 0.0.0.0/0; tcp 5432 sg-1", "", "", ""},
		"SQL Server, own DNS": {
			map[string]string{"DatabasePort": "1433", "DnsCidr": "10.0.0.2/32"},
			"tcp 1433 sg-1; tcp 443 0.0.0.0/0; tcp 53 10.0.0.2/32; udp 53 10.0.0.2/32", "", "", "",
		},
		"an endpoint": {
			map[string]string{"EndpointCidrs": five[0]},
			"tcp 443 <EndpointGroup>; tcp 5432 sg-1", "tcp 443 10.0.0.0/16", "null", "com.amazonaws.us-east-1.secretsmanager",
		},
		"an endpoint for two ranges and one secret": {
			map[string]string{"EndpointCidrs": strings.Join(five[:2], ","), "SecretArn": required["SecretArn"]},
			"tcp 443 <EndpointGroup>; tcp 5432 sg-1", "tcp 443 10.0.0.0/16; tcp 443 10.1.0.0/16",
			`{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "secretsmanager:GetSecretValue", "Resource": "` + required["SecretArn"] + `"}]}`,
			"com.amazonaws.us-east-1.secretsmanager",
		},
		"an endpoint for five ranges, FIPS": {
			map[string]string{"EndpointCidrs": strings.Join(five, ","), "UseFips": "true"},
			"tcp 443 <EndpointGroup>; tcp 5432 sg-1", "tcp 443 " + strings.Join(five, "; tcp 443 "), "null", "com.amazonaws.us-east-1.secretsmanager-fips",
		},
	} {
		_, r := loadNetwork(t, c.values)
		if got := strings.Join(doors(r["FunctionGroup"]["SecurityGroupEgress"].([]any)...), "; "); got != c.out {
			t.Errorf("%s: out of the function %s", name, got)
		}
		var into []any
		for name, resource := range r {
			if strings.HasPrefix(name, "IntoEndpoint") {
				into = append(into, resource)
			}
		}
		if got := strings.Join(doors(into...), "; "); got != c.into {
			t.Errorf("%s: into the endpoint %s", name, got)
		}
		endpoint, ok := r["Endpoint"]
		if ok != (c.service != "") {
			t.Errorf("%s: an endpoint: %t", name, ok)
		}
		if ok {
			same(t, name+": what may pass", endpoint["PolicyDocument"], c.policy)
			same(t, name, endpoint["ServiceName"], `"`+c.service+`"`)
		}
	}
}

func TestTheNetworkRefusesWhatIsNoRange(t *testing.T) {
	t.Parallel()
	stack, _ := loadNetwork(t, nil)
	for _, p := range []string{"DnsCidr", "EndpointCidrs"} {
		for _, value := range []string{"10.0.0.0", "10.0.0.0/33", "10.0.0/16", "10.0.0.0/16, 10.1.0.0/16", "10.0.0.0/16,", "vpc-1", strings.Repeat("10.0.0.0/16,", 5) + "10.0.0.0/16"} {
			if stack.Parameters[p].refuse(value) == nil {
				t.Errorf("%s takes %q", p, value)
			}
		}
	}
	if stack.Parameters["SecretArn"].refuse("purge") == nil {
		t.Error("SecretArn takes a name")
	}
	for name, p := range stack.Parameters {
		if p.Description == "" {
			t.Errorf("%s has no description", name)
		}
	}
}
