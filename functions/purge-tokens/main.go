// Command purge-tokens is the AWS Lambda function that deletes expired tokens
// from Ed-Fi's admin databases. This package wires: it reads the environment
// and the event, fetches the login, has package purge do the work through an
// adapter, and publishes what came out.
//
// Outside of Lambda the same binary is a command, see [usage].
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// runtimeAPI is the variable by which Lambda tells where events come from.
const runtimeAPI = "AWS_LAMBDA_RUNTIME_API"

func main() {
	if os.Getenv(runtimeAPI) == "" {
		os.Exit(local(os.Args[1:]))
	}
	h := newHandler()
	h.metrics, h.log = os.Stdout, lambdacontext.NewLogger()
	if h.fault != nil { // and it is the answer to every invocation
		h.log.Error("configuration", "error", h.fault.Error())
	}
	lambda.Start(h)
}

// newHandler reads the environment.
func newHandler() *handler {
	h := &handler{}
	if h.config, h.fault = readConfig(os.Getenv); h.fault != nil || h.config.secretID == "" {
		return h
	}
	aws, err := awsconfig.LoadDefaultConfig(context.Background())
	switch {
	case err != nil:
		h.fault = fmt.Errorf("the AWS_* variables: %w", err)
	case aws.Region == "":
		h.fault = errors.New("AWS_REGION is required, or a profile with a region")
	}
	h.secrets = secretsmanager.NewFromConfig(aws)
	return h
}
