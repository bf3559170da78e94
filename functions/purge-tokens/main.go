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
	"os"
	"regexp"
	"strings"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// Which build this is. The Makefile sets both by the linker.
var (
	version = "dev"
	commit  = "unknown"
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
	var faults []string
	if h.config, faults = readConfig(os.Getenv); h.config.secretID != "" {
		aws, err := awsconfig.LoadDefaultConfig(context.Background())
		switch {
		case err != nil:
			faults = append(faults, awsFault(err))
		case aws.Region == "":
			faults = append(faults, "AWS_REGION is required, or a profile with a region")
		}
		h.secrets = secretsmanager.NewFromConfig(aws)
	}
	if faults != nil {
		h.fault = errors.New(strings.Join(faults, "; "))
	}
	return h
}

var awsVariable = regexp.MustCompile(`\bAWS_[0-9A-Z_]+`)

// awsFault names what err is about; the SDK quotes the value as well.
func awsFault(err error) string {
	if _, ok := errors.AsType[awsconfig.SharedConfigProfileNotExistError](err); ok {
		return "AWS_PROFILE names no profile"
	}
	for _, name := range awsVariable.FindAllString(err.Error(), -1) {
		if os.Getenv(name) != "" {
			return name + " can't be used"
		}
	}
	return "the AWS_* variables, or the files that they lead to, can't be used"
}
