package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"edfi-token-purge/functions/internal/emf"
	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/secret"
)

// answerMargin is how long before the deadline the call for the secret ends,
// so that its failure can still be reported.
const answerMargin = time.Second

// handler is the Lambda function. From one invocation to the next it keeps the
// login, while that works, and no connection: after half an hour of freeze that
// would be dead.
type handler struct {
	config  config
	fault   error // what is wrong with the configuration
	secrets secret.Getter
	metrics io.Writer
	log     *slog.Logger
	login   *secret.Login // nil is to be fetched
}

// Invoke implements lambda.Handler: bytes in and out, so that the event can be
// read strictly.
func (h *handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	if h.fault != nil {
		return nil, h.fail(ctx, "ConfigurationError", h.fault)
	}
	req, err := parseEvent(payload)
	if err == nil {
		// What can be refused without the secret is refused before it is read.
		err = req.refuse(h.config.policy, h.config.databases, true)
	}
	if err != nil {
		return nil, h.fail(ctx, "InvalidEvent", err)
	}
	if h.login == nil {
		login, err := h.fetch(ctx, secret.Current)
		if err != nil {
			h.publish(ctx, emf.Run{Failed: true, StopReason: string(purge.Errored)})
			return nil, h.fail(ctx, "SecretError", err)
		}
		h.login = &login
	}
	login := *h.login
	h.login = nil // until it has worked
	engine, _ := engineNamed(login.Engine)
	selection := h.selection(login)
	if err := req.refuse(h.config.policy, &selection, engine.foldsCase); err != nil {
		return nil, h.fail(ctx, "InvalidEvent", err)
	}
	access := &logins{connect: h.connect, fetch: h.fetch, current: login, fetched: map[string]secret.Login{}}
	target := purge.Target{
		Engine: access, Name: engine.name,
		Server: net.JoinHostPort(login.Host, strconv.Itoa(int(login.Port))),
		Log:    h.log,
	}
	policy, findings := engine.limitBatch(h.config.policy)
	policy, target.Findings = req.narrow(policy), findings
	if req.databases != nil { // names, outright
		selection = purge.Select(req.databases...)
	}
	if target.Databases, err = resolve(ctx, access, selection, engine, login); err != nil {
		h.publish(ctx, emf.Run{Failed: true, StopReason: string(purge.Errored), Engine: target.Name})
		return nil, h.fail(ctx, "PurgeFailed", err)
	}

	h.log.InfoContext(ctx, "start", "action", policy.Action, "engine", target.Name, "server", target.Server,
		"databases", len(target.Databases), "batchSize", policy.BatchSize)
	result := purge.Run(ctx, target, policy, func(d purge.DatabaseResult) { h.report(ctx, d) })
	h.log.InfoContext(ctx, "end", "status", result.Status, "deletedRows", result.DeletedRows, "durationMs", result.DurationMs)
	if err := result.Err(); err != nil {
		return nil, h.fail(ctx, "PurgeFailed", err)
	}
	login = access.login()
	h.login = &login
	return answer(result)
}

// mostBytes is how long an answer may be; Lambda's own limit is 6 MB.
const mostBytes = 5_000_000

// answer writes the result. Where it would be too long, what is complete and has
// no findings stays out of the list of databases, then everything complete.
func answer(result purge.Result) ([]byte, error) {
	text, err := json.Marshal(result)
	for _, boring := range []func(purge.DatabaseResult) bool{
		func(d purge.DatabaseResult) bool { return d.Status == purge.Complete && len(d.Findings) == 0 },
		func(d purge.DatabaseResult) bool { return d.Status == purge.Complete || d.Status == purge.Skipped },
	} {
		if err == nil && len(text) > mostBytes {
			result.Databases = slices.DeleteFunc(slices.Clone(result.Databases), boring)
			text, err = json.Marshal(result)
		}
	}
	return text, err
}

// resolve answers the databases to serve.
func resolve(ctx context.Context, s server, selection purge.Selection, e engine, login secret.Login) ([]purge.Database, error) {
	var catalogue []purge.Database
	if selection.HasPatterns() {
		var err error
		if catalogue, err = s.Databases(ctx, cmp.Or(login.Database, e.catalogue)); err != nil {
			return nil, fmt.Errorf("the server's list of databases, for the patterns in DATABASES: %w", err)
		}
	}
	databases := selection.Resolve(catalogue, e.foldsCase)
	if len(databases) == 0 {
		return nil, fmt.Errorf("none of the server's %d databases matches DATABASES", len(catalogue))
	}
	return databases, nil
}

// fail logs err and gives it the errorType that callers tell it by.
func (h *handler) fail(ctx context.Context, errorType string, err error) error {
	h.log.ErrorContext(ctx, "failed", "errorType", errorType, "error", err.Error())
	return messages.InvokeResponse_Error{Type: errorType, Message: err.Error()}
}

// fetch reads the login and fills in what the configuration says instead.
func (h *handler) fetch(ctx context.Context, stage string) (secret.Login, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-answerMargin))
		defer cancel()
	}
	login, err := secret.Fetch(ctx, h.secrets, h.config.secretID, stage)
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
	engine, known := engineNamed(login.Engine)
	switch {
	case login.Engine == "":
		return login, errors.New("the secret names no engine: set DB_ENGINE")
	case !known:
		return login, fmt.Errorf("the secret's engine is none that this function knows: it must be one of %s", engineNames())
	case login.Host == "":
		return login, errors.New("the secret names no host: set DB_HOST")
	}
	login.Port = cmp.Or(login.Port, engine.port)
	return login, nil
}

// selection answers the configured one, else the secret's database, else Ed-Fi's
// own name for it.
func (h *handler) selection(login secret.Login) purge.Selection {
	if h.config.databases != nil {
		return *h.config.databases
	}
	return purge.Select(cmp.Or(login.Database, "EdFi_Admin"))
}

// connect makes the server from a login.
func (h *handler) connect(login secret.Login) server {
	engine, _ := engineNamed(login.Engine)
	var verified *tls.Config
	if !h.config.plaintext {
		verified = &tls.Config{RootCAs: h.config.roots, ServerName: login.Host, MinVersion: tls.VersionTLS12}
	}
	return engine.connect(login, h.config, verified)
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
	if d.Status != purge.Skipped {
		h.publish(ctx, run)
	}

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
