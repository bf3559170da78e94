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

// The Makefile sets both with the linker, to tell which build this is.
var (
	version = "dev"
	commit  = "unknown"
)

// runtimeAPI is the variable in which Lambda gives the address of its API.
const runtimeAPI = "AWS_LAMBDA_RUNTIME_API"

func main() {
	if os.Getenv(runtimeAPI) == "" {
		os.Exit(local(os.Args[1:]))
	}
	h := newHandler()
	h.metrics, h.log = os.Stdout, lambdacontext.NewLogger()
	if h.fault != nil { // then every invocation returns it
		h.log.Error("configuration", "error", h.fault.Error())
	}
	lambda.Start(h)
}

// newHandler reads the environment.
func newHandler() *handler {
	forgetPostgres()
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

// forgetPostgres unsets the variables that are for psql and its like. The driver reads
// them, and one of them could send the function elsewhere or keep it from starting.
func forgetPostgres() {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			os.Unsetenv(name) //nolint:errcheck // it was there
		}
	}
}

var awsVariable = regexp.MustCompile(`\bAWS_[0-9A-Z_]+`)

// awsFault names the setting that err is about. The SDK's error quotes its value.
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
