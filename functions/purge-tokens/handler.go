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
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"edfi-token-purge/functions/internal/emf"
	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/secret"
	"edfi-token-purge/functions/internal/sqlserver"
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
	watch   *progress     // nil, but for local use
	began   time.Time     // the invocation, which dates all its metrics
}

// The errorTypes, by which callers tell errors apart.
const (
	configurationError = "ConfigurationError"
	invalidEvent       = "InvalidEvent"
	secretError        = "SecretError"
	purgeFailed        = "PurgeFailed"
)

func failure(errorType string, err error) error {
	message := err.Error()
	if errorType == invalidEvent { // it quotes the event, where a secret may stand by mistake
		message = redact.Text(message)
	}
	return messages.InvokeResponse_Error{Type: errorType, Message: message}
}

// Invoke implements lambda.Handler: bytes in and out, so that the event can be
// read strictly.
func (h *handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	result, err := h.serve(ctx, payload)
	var failed messages.InvokeResponse_Error
	if errors.As(err, &failed) {
		h.log.ErrorContext(ctx, "failed", "errorType", failed.Type, "error", failed.Message)
	}
	if err != nil {
		return nil, err
	}
	return answer(ctx, result)
}

func (h *handler) serve(ctx context.Context, payload []byte) (purge.Result, error) {
	if h.fault != nil {
		return purge.Result{}, failure(configurationError, h.fault)
	}
	req, err := parseEvent(payload)
	if err != nil {
		return purge.Result{}, failure(invalidEvent, err)
	}
	return h.run(ctx, req)
}

// run does what req asks. Where databases failed, the result tells of the others.
func (h *handler) run(ctx context.Context, req request) (result purge.Result, err error) {
	h.began = time.Now()
	// What can be refused without the secret is refused before it is read.
	if err := req.refuse(h.config.policy, h.config.databases, true); err != nil {
		return result, failure(invalidEvent, err)
	}
	if h.login == nil {
		login, err := h.fetch(ctx, secret.Current)
		if err != nil {
			h.publish(ctx, emf.Run{Failed: true, Incomplete: true, StopReason: string(purge.Errored)})
			return result, failure(secretError, err)
		}
		h.login = &login
	}
	login := *h.login
	h.login = nil // until it has worked
	engine, _ := engineNamed(login.Engine)
	selection := h.selection(login)
	if err := engine.fits(req.databases); err != nil {
		return result, failure(invalidEvent, fmt.Errorf("databases: %w", err))
	}
	if err := engine.fits(selection.Names()); err != nil {
		return result, failure(configurationError, fmt.Errorf("DATABASES, or dbname in the secret: %w", err))
	}
	if err := req.refuse(h.config.policy, &selection, engine.caseInsensitive); err != nil {
		return result, failure(invalidEvent, err)
	}
	access := newLogins(login, h.connector(), func(stage string) (secret.Login, error) { return h.fetch(ctx, stage) })
	target := purge.Target{
		Engine: access, Table: purge.ClientAccessTokens, Name: engine.name,
		Server: net.JoinHostPort(login.Host, strconv.Itoa(int(login.Port))),
		Log:    h.log,
	}
	policy, findings := engine.limitBatch(h.config.policy)
	policy, target.Findings = req.narrow(policy), findings
	if req.databases != nil { // names, outright
		selection = purge.Select(req.databases...)
	}
	if target.Databases, err = resolve(ctx, access, selection, engine, login); err != nil {
		h.publish(ctx, emf.Run{Failed: true, Incomplete: true, StopReason: string(purge.Errored), Engine: target.Name})
		return result, failure(purgeFailed, err)
	}
	if h.watch != nil {
		target.Engine = h.watch.over(access, policy, len(target.Databases))
		target.Deleted, target.Waiting = h.watch.deletedRows, h.watch.waits
	}

	h.log.InfoContext(ctx, "start", "version", version, "commit", commit, "action", policy.Action, "engine", target.Name, "server", target.Server,
		"databases", len(target.Databases), "batchSize", policy.BatchSize)
	result = purge.Run(ctx, target, policy, func(d purge.DatabaseResult) { h.report(ctx, d) })
	h.log.InfoContext(ctx, "end", "action", result.Action, "status", result.Status, "deletedRows", result.DeletedRows,
		"databases", len(result.Databases), "durationMs", result.DurationMs)
	if err := result.Err(); err != nil {
		if !slices.ContainsFunc(result.Databases, func(d purge.DatabaseResult) bool { return d.Status != purge.Skipped }) { // none has a metric line
			h.publish(ctx, emf.Run{Failed: true, Incomplete: true, StopReason: string(purge.Errored), Engine: target.Name})
		}
		return result, failure(purgeFailed, err)
	}
	login, _ = access.login() // it has worked
	h.login = &login
	return result, nil
}

// mostBytes is how long an answer may be; Lambda's own limit is 6 MB.
const mostBytes = 5_000_000

// answer writes the result. Where it would be too long, what is complete and has
// no findings stays out of the list of databases, then everything complete. A
// caller whose client context says so, such as the state machine of
// infra/drain.yaml, gets no list: a state holds 256 KiB.
func answer(ctx context.Context, result purge.Result) ([]byte, error) {
	if lc, ok := lambdacontext.FromContext(ctx); ok && lc.ClientContext.Custom["answer"] == "totals" {
		result.Findings, result.Databases = nil, []purge.DatabaseResult{}
	}
	text, err := json.Marshal(result)
	for _, droppable := range []func(purge.DatabaseResult) bool{
		func(d purge.DatabaseResult) bool { return d.Status == purge.Complete && len(d.Findings) == 0 },
		func(d purge.DatabaseResult) bool { return d.Status == purge.Complete || d.Status == purge.Skipped },
	} {
		if err == nil && len(text) > mostBytes {
			result.Databases = slices.DeleteFunc(slices.Clone(result.Databases), droppable)
			text, err = json.Marshal(result)
		}
	}
	return text, err
}

// resolve returns the databases to serve.
func resolve(ctx context.Context, s server, selection purge.Selection, e engine, login secret.Login) ([]purge.Database, error) {
	var catalogue []purge.Database
	if selection.HasPatterns() {
		var err error
		if catalogue, err = s.Databases(ctx, cmp.Or(login.Database, e.catalogue)); err != nil {
			return nil, fmt.Errorf("the server's list of databases, for the patterns in DATABASES: %w", err)
		}
	}
	databases := selection.Resolve(catalogue, e.caseInsensitive && !differInCase(catalogue))
	if len(databases) == 0 {
		return nil, fmt.Errorf("none of the server's %d databases matches DATABASES", len(catalogue))
	}
	return databases, nil
}

// differInCase tells whether the catalogue has names that differ in their letter case
// alone. Only a server does to which they are two.
func differInCase(catalogue []purge.Database) bool {
	seen := map[string]bool{}
	for _, d := range catalogue {
		folded := strings.ToLower(d.Name)
		if seen[folded] {
			return true
		}
		seen[folded] = true
	}
	return false
}

// fetch reads the login and fills in what the configuration says instead.
func (h *handler) fetch(ctx context.Context, stage string) (secret.Login, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-answerMargin))
		defer cancel()
	}
	login := h.config.login
	if h.config.secretID != "" {
		var err error
		if login, err = secret.Fetch(ctx, h.secrets, h.config.secretID, stage); err != nil {
			return login, err
		}
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
	case !isHost(login.Host):
		return login, errors.New("the secret: host " + hostRule)
	case h.config.strict && !engine.strict:
		return login, fmt.Errorf("DB_TLS=strict is for SQL Server, and the secret names %s: set DB_TLS=verify-full", engine.name)
	case strings.Contains(login.Database, "://"):
		return login, errors.New("the secret: the database must be a name, and not a URL")
	}
	login.Port = cmp.Or(login.Port, engine.port)
	return login, nil
}

// selection returns the configured one, else the secret's database, else Ed-Fi's
// own name for it.
func (h *handler) selection(login secret.Login) purge.Selection {
	if h.config.databases != nil {
		return *h.config.databases
	}
	return purge.Select(cmp.Or(login.Database, "EdFi_Admin"))
}

// connector returns what makes the server from a login, for one run.
func (h *handler) connector() func(secret.Login) server {
	memory := new(sqlserver.Memory)
	return func(login secret.Login) server {
		engine, _ := engineNamed(login.Engine)
		var verified *tls.Config
		if !h.config.plaintext {
			verified = &tls.Config{RootCAs: h.config.roots, ServerName: login.Host, MinVersion: tls.VersionTLS12}
		}
		return engine.connect(login, h.config, verified, memory)
	}
}

// report publishes and logs what happened in one database.
func (h *handler) report(ctx context.Context, d purge.DatabaseResult) {
	run := emf.Run{
		Database:         d.Database,
		DeletedRows:      d.DeletedRows,
		Batches:          d.Batches,
		Duration:         time.Duration(d.DurationMs) * time.Millisecond,
		Failed:           d.Status == purge.Failed,
		Incomplete:       d.Status != purge.Complete,
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

	if h.watch != nil {
		h.watch.finished(d.Database)
	}
	attrs := []any{
		"database", d.Database, "status", d.Status, "stopReason", d.StopReason, "deletedRows", d.DeletedRows,
		"batches", d.Batches, "durationMs", d.DurationMs,
	}
	if d.ExpiredRows != nil {
		attrs = append(attrs, "expiredRows", *d.ExpiredRows)
	}
	if d.Cutoff != nil {
		attrs = append(attrs, "cutoff", d.Cutoff)
	}
	if d.OldestExpiration != nil {
		attrs = append(attrs, "oldestExpiration", d.OldestExpiration)
	}
	if d.ThrottledMs > 0 {
		attrs = append(attrs, "throttledMs", d.ThrottledMs, "throttled", purge.ThrottleReason)
	}
	if d.Error != "" {
		attrs = append(attrs, "error", d.Error)
	}
	if len(d.Findings) > 0 {
		attrs = append(attrs, "findings", d.Findings)
	}
	h.log.InfoContext(ctx, "database", attrs...)
}

// publish writes one metric line.
func (h *handler) publish(ctx context.Context, run emf.Run) {
	run.Namespace, run.FunctionName, run.PerDatabase = h.config.namespace, h.config.function, h.config.metricsPerDatabase
	run.Time, run.Version = h.began, version
	if lc, ok := lambdacontext.FromContext(ctx); ok {
		run.RequestID = lc.AwsRequestID
	}
	if err := emf.Write(h.metrics, run); err != nil {
		h.log.ErrorContext(ctx, "metric not written", "error", fmt.Sprint(err))
	}
}
