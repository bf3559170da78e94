package fakeaws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
)

// The test binary is its own function: started with MODE set, it polls.
func TestMain(m *testing.M) {
	switch os.Getenv("MODE") {
	case "":
		os.Exit(m.Run())
	case "exit":
		os.Exit(3)
	case "serve":
		lambda.Start(serve)
	}
}

func serve(ctx context.Context, event struct{ Do string }) (map[string]any, error) {
	switch event.Do {
	case "fail":
		return nil, errors.New("no luck")
	case "exit":
		os.Exit(3)
	case "sleep":
		<-context.Background().Done()
	}
	lc, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	return map[string]any{
		"id": lc.AwsRequestID, "left": time.Until(deadline).Seconds(), "env": os.Environ(),
		"name": lambdacontext.FunctionName,
	}, nil
}

func function(t *testing.T, env ...string) *Function {
	t.Helper()
	api, err := NewRuntimeAPI()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	var stderr bytes.Buffer
	f, err := StartFunction(t.Context(), FunctionOptions{Binary: os.Args[0], Env: env, API: api, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Stop()
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	return f
}

func TestAFunctionAnswersWithItsRequestIdAndDeadline(t *testing.T) {
	t.Setenv("NOT_FOR_THE_FUNCTION", "x")
	f := function(t, "MODE=serve", "AWS_LAMBDA_FUNCTION_NAME=other")
	var ids []string
	for range 3 {
		reply, err := f.Invoke(t.Context(), []byte(`{}`), time.Minute)
		if err != nil || reply.Error != nil {
			t.Fatal(err, reply.Error)
		}
		var got struct {
			ID, Name string
			Left     float64
			Env      []string
		}
		if err := json.Unmarshal(reply.Payload, &got); err != nil {
			t.Fatal(err)
		}
		if got.ID != reply.RequestID || slices.Contains(ids, got.ID) {
			t.Errorf("id %s after %s, handed out as %s", got.ID, ids, reply.RequestID)
		}
		ids = append(ids, got.ID)
		if got.Left < 50 || got.Left > 60 {
			t.Errorf("%f s are left of a minute", got.Left)
		}
		if got.Name != "other" {
			t.Errorf("the function's name is %s", got.Name)
		}
		if strings.Contains(strings.Join(got.Env, "\n"), "NOT_FOR_THE_FUNCTION") {
			t.Error("the caller's environment got in")
		}
	}
}

func TestAnErrorIsInTheReplyAndTheFunctionLivesOn(t *testing.T) {
	f := function(t, "MODE=serve")
	reply, err := f.Invoke(t.Context(), []byte(`{"Do":"fail"}`), time.Minute)
	if err != nil || reply.Error == nil || *reply.Error != (ErrorReply{"no luck", "errorString"}) {
		t.Fatal(err, reply.Error)
	}
	if reply, err := f.Invoke(t.Context(), []byte(`{}`), time.Minute); err != nil || reply.Error != nil {
		t.Fatal(err, reply.Error)
	}
}

// The library for Go reports no error of the initialization; others do.
func TestAnErrorBeforeTheFirstPollIsInTheReply(t *testing.T) {
	api, err := NewRuntimeAPI()
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	resp, err := http.Post("http://"+api.Addr()+"/2018-06-01/runtime/init/error", "application/json",
		strings.NewReader(`{"errorMessage":"no luck","errorType":"Init"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	reply, err := api.Invoke(t.Context(), nil, time.Minute)
	if err != nil || reply.Error == nil || *reply.Error != (ErrorReply{"no luck", "Init"}) {
		t.Errorf("got %+v, %v, status %s", reply, err, resp.Status)
	}
}

func TestAProcessThatExitsOrOverrunsIsAnError(t *testing.T) {
	for _, c := range []struct {
		mode, do string
		timeout  time.Duration
		want     string
	}{
		{"exit", "", time.Minute, "exit status 3"},
		{"serve", "exit", time.Minute, "exit status 3"},
		{"serve", "sleep", 500 * time.Millisecond, "killed at its timeout"},
	} {
		t.Run(c.mode+c.do, func(t *testing.T) {
			f := function(t, "MODE="+c.mode)
			_, err := f.Invoke(t.Context(), fmt.Appendf(nil, `{"Do":%q}`, c.do), c.timeout)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			select {
			case <-f.Done():
			case <-time.After(10 * time.Second):
				t.Error("it still runs")
			}
		})
	}
}

func TestInvocationsTakeTurns(t *testing.T) {
	f := function(t, "MODE=serve")
	errs := make(chan error)
	for range 5 {
		go func() {
			reply, err := f.Invoke(t.Context(), []byte(`{}`), time.Minute)
			if err == nil && reply.Error != nil {
				err = errors.New(reply.Error.Message)
			}
			errs <- err
		}()
	}
	for range 5 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func secrets(t *testing.T) (*SecretsManager, func(ctx context.Context, id, stage string) (string, error)) {
	t.Helper()
	s, err := NewSecretsManager()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	client := secretsmanager.New(secretsmanager.Options{
		BaseEndpoint: aws.String(s.URL()), Region: "us-east-1",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, nil
		}),
	})
	return s, func(ctx context.Context, id, stage string) (string, error) {
		in := &secretsmanager.GetSecretValueInput{SecretId: &id}
		if stage != "" {
			in.VersionStage = &stage
		}
		out, err := client.GetSecretValue(ctx, in)
		if err != nil {
			return "", err
		}
		return aws.ToString(out.SecretString), nil
	}
}

func TestASecretIsFoundByNameAndARNAndKeepsItsPreviousValue(t *testing.T) {
	s, get := secrets(t)
	s.Put("ed-fi/admin", "old")
	s.Put("ed-fi/admin", "middle")
	s.Put(s.ARN("ed-fi/admin"), "new")
	for _, id := range []string{"ed-fi/admin", s.ARN("ed-fi/admin"), strings.TrimSuffix(s.ARN("ed-fi/admin"), arnSuffix)} {
		for stage, want := range map[string]string{"": "new", "AWSCURRENT": "new", "AWSPREVIOUS": "middle"} {
			if got, err := get(t.Context(), id, stage); err != nil || got != want {
				t.Errorf("%s %s: got %q, %v, want %q", id, stage, got, err, want)
			}
		}
	}
	if got := s.Calls(); got != 9 {
		t.Errorf("counted %d calls of 9", got)
	}
}

func TestFaultsReachTheClientAsItsOwnTypes(t *testing.T) {
	s, get := secrets(t)
	var missing *types.ResourceNotFoundException
	if _, err := get(t.Context(), "unknown", ""); !errors.As(err, &missing) {
		t.Errorf("unknown: got %v", err)
	}
	s.Put("a", "value")
	if _, err := get(t.Context(), "a", "AWSPREVIOUS"); !errors.As(err, &missing) {
		t.Errorf("never rotated: got %v", err)
	}
	s.Fail("AccessDeniedException", "not you")
	if _, err := get(t.Context(), "a", ""); err == nil || !strings.Contains(err.Error(), "AccessDeniedException: not you") {
		t.Errorf("denied: got %v", err)
	}
	s.Recover()
	if got, err := get(t.Context(), "a", ""); err != nil || got != "value" {
		t.Errorf("recovered: got %q, %v", got, err)
	}
}

func TestACallThatHangsEndsWithItsCaller(t *testing.T) {
	s, get := secrets(t)
	s.Put("a", "value")
	s.Hang()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := get(ctx, "a", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	s.Recover()
	if _, err := get(t.Context(), "a", ""); err != nil {
		t.Error(err)
	}
}
