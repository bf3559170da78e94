package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"edfi-token-purge/functions/internal/emf"
	"edfi-token-purge/functions/internal/postgres"
	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
)

// answerMargin is how long before the deadline the call for the secret ends,
// so that its failure can still be reported.
const answerMargin = time.Second

// handler is the Lambda function. It keeps nothing from one invocation to the
// next: a connection would be dead after half an hour of freeze.
type handler struct {
	config  config
	fault   error // what is wrong with the configuration
	secrets secret.Getter
	metrics io.Writer
	log     *slog.Logger
}

// Invoke implements lambda.Handler: bytes in and out, so that the event can be
// read strictly.
func (h *handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	if h.fault != nil {
		return nil, h.fail(ctx, "ConfigurationError", h.fault)
	}
	req, err := parseEvent(payload)
	if err == nil {
		err = req.refuse(h.config.policy, h.config.databases)
	}
	if err != nil {
		return nil, h.fail(ctx, "InvalidEvent", err)
	}
	login, err := h.fetch(ctx)
	if err != nil {
		h.publish(ctx, emf.Run{Failed: true, StopReason: string(purge.Errored)})
		return nil, h.fail(ctx, "SecretError", err)
	}
	target, policy := h.target(login)
	if err := req.refuse(policy, target.Databases); err != nil {
		return nil, h.fail(ctx, "InvalidEvent", err)
	}
	policy = req.narrow(policy)
	if req.databases != nil {
		target.Databases = req.databases
	}

	h.log.InfoContext(ctx, "start", "action", policy.Action, "engine", target.Name, "server", target.Server,
		"databases", len(target.Databases), "batchSize", policy.BatchSize)
	result := purge.Run(ctx, target, policy, func(d purge.DatabaseResult) { h.report(ctx, d) })
	h.log.InfoContext(ctx, "end", "status", result.Status, "deletedRows", result.DeletedRows, "durationMs", result.DurationMs)
	if err := result.Err(); err != nil {
		return nil, h.fail(ctx, "PurgeFailed", err)
	}
	return json.Marshal(result)
}

// fail logs err and gives it the errorType that callers tell it by.
func (h *handler) fail(ctx context.Context, errorType string, err error) error {
	h.log.ErrorContext(ctx, "failed", "errorType", errorType, "error", err.Error())
	return messages.InvokeResponse_Error{Type: errorType, Message: err.Error()}
}

// fetch reads the login and fills in what the configuration says instead.
func (h *handler) fetch(ctx context.Context) (secret.Login, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-answerMargin))
		defer cancel()
	}
	login, err := secret.Fetch(ctx, h.secrets, h.config.secretID)
	if err != nil {
		return login, err
	}
	if h.config.engine != "" {
		login.Engine = h.config.engine
	}
	if h.config.host != "" {
		login.Host = h.config.host
	}
	if h.config.port != 0 {
		login.Port = h.config.port
	}
	switch {
	case login.Engine == "":
		return login, errors.New("the secret names no engine: set DB_ENGINE")
	case engines[login.Engine] == "":
		return login, errors.New("the secret's engine is none that this function knows: it must be postgres or aurora-postgresql")
	case login.Host == "":
		return login, errors.New("the secret names no host: set DB_HOST")
	}
	return login, nil
}

// target makes the engine and its defaults from the login.
func (h *handler) target(login secret.Login) (purge.Target, purge.Policy) {
	policy := h.config.policy
	if policy.BatchSize == 0 {
		policy.BatchSize = 5000
	}
	if login.Port == 0 {
		login.Port = 5432
	}
	server := postgres.Server{
		Host: login.Host, Port: login.Port,
		User: login.Username, Password: login.Password,
		LockTimeout: h.config.lockTimeout,
	}
	if !h.config.plaintext {
		server.TLS = &tls.Config{RootCAs: h.config.roots, ServerName: login.Host, MinVersion: tls.VersionTLS12}
	}
	databases := h.config.databases
	switch {
	case databases != nil:
	case login.Database != "":
		databases = []string{login.Database}
	default:
		databases = []string{"EdFi_Admin"}
	}
	return purge.Target{
		Engine: server, Name: engines[login.Engine],
		Server:    net.JoinHostPort(login.Host, strconv.Itoa(int(login.Port))),
		Databases: databases, Log: h.log,
	}, policy
}

// report publishes and logs what happened in one database.
func (h *handler) report(ctx context.Context, d purge.DatabaseResult) {
	run := emf.Run{
		Database:         d.Database,
		DeletedRows:      d.DeletedRows,
		Batches:          d.Batches,
		Duration:         time.Duration(d.DurationMs) * time.Millisecond,
		Failed:           d.Status == purge.Failed,
		OldestExpiredAge: d.OldestExpiredAge(),
		StopReason:       string(d.StopReason),
		Engine:           d.Engine,
	}
	if d.Cutoff != nil {
		run.Cutoff = d.Cutoff.String()
	}
	h.publish(ctx, run)

	level := slog.LevelInfo
	if d.Status == purge.Failed {
		level = slog.LevelError
	}
	attrs := []any{"database", d.Database, "status", d.Status, "stopReason", d.StopReason,
		"deletedRows", d.DeletedRows, "batches", d.Batches, "durationMs", d.DurationMs}
	if d.Error != "" {
		attrs = append(attrs, "error", d.Error)
	}
	for _, f := range d.Findings {
		attrs = append(attrs, f.Code, f.Message)
	}
	h.log.Log(ctx, level, "database", attrs...)
}

// publish writes one metric line.
func (h *handler) publish(ctx context.Context, run emf.Run) {
	run.Namespace, run.FunctionName, run.Time = h.config.namespace, h.config.function, time.Now()
	if lc, ok := lambdacontext.FromContext(ctx); ok {
		run.RequestID = lc.AwsRequestID
	}
	if err := emf.Write(h.metrics, run); err != nil {
		h.log.ErrorContext(ctx, "metric not written", "error", fmt.Sprint(err))
	}
}
