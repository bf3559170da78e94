// Command purge-tokens is the AWS Lambda function that deletes expired tokens
// from Ed-Fi's admin databases. This package wires: it reads the environment
// and the event, fetches the login, has package purge do the work through an
// adapter, and publishes what came out.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

func main() {
	h := &handler{metrics: os.Stdout, log: lambdacontext.NewLogger()}
	if h.config, h.fault = readConfig(os.Getenv); h.fault == nil {
		aws, err := awsconfig.LoadDefaultConfig(context.Background())
		if err != nil {
			h.fault = fmt.Errorf("the AWS_* variables: %w", err)
		}
		h.secrets = secretsmanager.NewFromConfig(aws)
	}
	if h.fault != nil { // and it is the answer to every invocation
		h.log.Error("configuration", "error", h.fault.Error())
	}
	lambda.Start(h)
}
