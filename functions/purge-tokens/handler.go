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
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/secret"
	"edfi-token-purge/functions/internal/sqlserver"
)

// handler is the Lambda function. From one invocation to the next it keeps the login
// that worked last, for when Secrets Manager does not answer, and no connection: after
// half an hour of freeze that would be dead.
type handler struct {
	config  config
	fault   error // what is wrong with the configuration
	secrets secret.Getter
	metrics io.Writer
	log     *slog.Logger
	worked  *secret.Login // nil is none yet
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

// mostMessage is how long an error's message may be, in bytes.
const mostMessage = 8000

func failure(errorType string, err error) error {
	return messages.InvokeResponse_Error{Type: errorType, Message: redact.Cut(err.Error(), mostMessage)}
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
func (h *handler) run(ctx context.Context, req request) (purge.Result, error) {
	h.began = time.Now()
	// What can be refused without the secret is refused before it is read.
	if err := req.refuse(h.config.policy, h.config.tables, h.allowsUnread()); err != nil {
		return purge.Result{}, failure(invalidEvent, err)
	}
	r := &invocation{handler: h, ctx: ctx, req: req}
	var cancel context.CancelFunc
	margin := h.margin(ctx)
	r.before, cancel = beforeStop(ctx, margin)
	defer cancel()
	deadline, limited := ctx.Deadline()
	r.noTime = limited && time.Until(deadline) <= h.config.policy.StopBefore

	login, err := r.current()
	switch {
	case err != nil && r.late():
		return r.tooLate(), nil
	case err != nil:
		return purge.Result{}, r.failed(secretError, err, "")
	}
	access := newLogins(login, h.source(), h.connector(max(margin/lingerShare, time.Millisecond)), func(stage string) (secret.Login, error) { return h.fetch(r.before, stage) })
	access.patience = h.config.policy.ConnectTimeout
	for {
		result, err := r.attempt(access)
		if !access.leaving() {
			if worked := access.worked(); worked != nil {
				h.worked = worked
			}
			return result, err
		}
		next := access.startOver()
		h.log.WarnContext(ctx, "login refused, another version of the secret names another server",
			"server", address(access.current), "other", address(next.current))
		access = next
	}
}

// margin returns how long before its timeout the function stops; where there is not so
// much, half of what there is.
func (h *handler) margin(ctx context.Context) time.Duration {
	deadline, limited := ctx.Deadline()
	if !limited {
		return h.config.policy.StopBefore
	}
	return min(h.config.policy.StopBefore, time.Until(deadline)/2)
}

// beforeStop derives the context of what comes before the run: it ends when the run
// would have to stop.
func beforeStop(ctx context.Context, margin time.Duration) (context.Context, context.CancelFunc) {
	deadline, limited := ctx.Deadline()
	if !limited {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-margin))
}

// allowsUnread returns what tells whether DATABASES can allow a name, while the server
// that would say what a letter's case means is not known.
func (h *handler) allowsUnread() func(name string) bool {
	if h.config.databases == nil {
		return func(string) bool { return true }
	}
	exact, fold := h.config.databases.Filter(false), h.config.databases.Filter(true)
	return func(name string) bool { return exact(name) || fold(name) }
}

// invocation is one run.
type invocation struct {
	*handler
	ctx      context.Context
	before   context.Context // of what comes before the run
	req      request
	noTime   bool // less was left than STOP_BEFORE when it began
	findings []purge.Finding
}

// current returns the login in the secret; where that can't be read, the one that
// worked last.
func (r *invocation) current() (secret.Login, error) {
	ctx := r.before
	if end, limited := ctx.Deadline(); limited && r.worked != nil { // which needs time as well
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	login, err := r.fetch(ctx, secret.Current)
	if r.worked == nil || !errors.Is(err, secret.ErrUnread) || r.ctx.Err() != nil {
		return login, err
	}
	r.findings = append(r.findings, purge.SecretUnread.Found(fmt.Sprintf("the secret could not be read, so the login that worked last was used, which names %s: %v", address(*r.worked), err)))
	return *r.worked, nil
}

// attempt serves the databases of the server that the login names. Its result is none
// where access is leaving that.
func (r *invocation) attempt(access *logins) (purge.Result, error) {
	login := access.current
	engine, _ := engineNamed(login.Engine)
	selection := r.selection(login)
	if err := engine.fits(r.req.databases); err != nil {
		return purge.Result{}, failure(invalidEvent, fmt.Errorf("databases: %w", err))
	}
	if err := engine.fits(selection.Names()); err != nil {
		return purge.Result{}, failure(configurationError, fmt.Errorf("DATABASES: %w", err))
	}
	allows, err := r.allows(access, selection, engine, login)
	if err != nil {
		return r.unlisted(access, err, engine)
	}
	if err := r.req.refuse(r.config.policy, r.config.tables, allows); err != nil {
		return purge.Result{}, failure(invalidEvent, err)
	}
	target := purge.Target{
		Engine: access, Tables: r.req.narrowTables(r.config.tables), Name: engine.name,
		Server: address(login),
		Log:    r.log,
	}
	policy, findings := engine.limitBatch(r.config.policy)
	policy, target.Findings = r.req.narrow(policy), slices.Concat(r.findings, findings)
	if r.req.databases != nil { // names, outright
		selection = purge.Select(r.req.databases...)
	}
	if target.Databases, err = resolve(r.before, access, selection, engine, login); err != nil {
		return r.unlisted(access, err, engine)
	}
	if r.watch != nil {
		target.Engine = r.watch.over(target, policy)
		target.Deleted, target.Waiting = r.watch.deletedRows, r.watch.waits
	}

	return r.serve(access, target, policy)
}

// allows returns what tells whether DATABASES allows a name. Where that depends on
// which names are one, the server is asked.
func (r *invocation) allows(access *logins, selection purge.Selection, e engine, login secret.Login) (func(name string) bool, error) {
	exact, fold := selection.Filter(false), selection.Filter(true)
	if !e.caseInsensitive {
		return exact, nil
	}
	allows := fold
	if slices.ContainsFunc(r.req.databases, func(name string) bool { return exact(name) != fold(name) }) {
		catalogue, err := list(r.before, access, e, login)
		if err != nil {
			return nil, err
		}
		if differInCase(catalogue) {
			allows = exact
		}
	}
	excluded, err := excluded(r.before, access, selection, e, login, r.req.databases)
	return func(name string) bool { return allows(name) && !excluded[name] }, err
}

// unlisted is the end of a run that does not know its databases, for err.
func (r *invocation) unlisted(access *logins, err error, e engine) (purge.Result, error) {
	switch {
	case access.leaving():
		return purge.Result{}, err
	case r.late():
		return r.tooLate(), nil
	}
	return purge.Result{}, r.failed(purgeFailed, err, e.name)
}

// serve runs what is wanted on the target, and publishes it.
func (r *invocation) serve(access *logins, target purge.Target, policy purge.Policy) (purge.Result, error) {
	r.log.InfoContext(r.ctx, "start", "version", version, "commit", commit, "action", policy.Action, "engine", target.Name, "server", target.Server,
		"databases", len(target.Databases), "batchSize", policy.BatchSize)
	var held []purge.DatabaseResult // nobody sees them if the run starts over
	result := purge.Run(r.ctx, target, policy, func(d purge.DatabaseResult) {
		if access.leaving() {
			held = append(held, d)
			return
		}
		r.report(r.ctx, d)
	})
	if access.leaving() {
		return result, nil
	}
	for _, d := range held {
		r.report(r.ctx, d)
	}
	r.log.InfoContext(r.ctx, "end", "action", result.Action, "status", result.Status, "deletedRows", result.DeletedRows,
		"databases", len(result.Databases), "durationMs", result.DurationMs)
	if err := result.Err(); err != nil {
		if result.AllSkipped() { // none has a metric line
			return result, r.failed(purgeFailed, err, target.Name)
		}
		return result, failure(purgeFailed, err)
	}
	return result, nil
}

// late tells whether the time was too short from the beginning, and is over; a wire may
// give up a moment earlier.
func (r *invocation) late() bool {
	end, limited := r.before.Deadline()
	return r.noTime && limited && time.Until(end) < 100*time.Millisecond
}

// tooLate is the result of a run whose time was over before its databases were known.
func (r *invocation) tooLate() purge.Result {
	r.publish(r.ctx, emf.Run{Incomplete: true, StopReason: string(purge.Deadline)})
	found := purge.NoTime.Found("less time was left than STOP_BEFORE when the run began, too little to find out which databases there are: raise the function's timeout or lower STOP_BEFORE")
	r.log.WarnContext(r.ctx, "end", "action", r.req.action, "status", purge.Partial, "finding", found)
	return purge.Result{
		Status: purge.Partial, Action: r.req.action, DurationMs: time.Since(r.began).Milliseconds(),
		Findings: []purge.Group{{Finding: found}}, Databases: []purge.DatabaseResult{},
	}
}

// failed publishes that no database was reached, and returns the error for it.
func (r *invocation) failed(errorType string, err error, engine string) error {
	r.publish(r.ctx, emf.Run{Failed: true, Incomplete: true, StopReason: string(purge.Errored), Engine: engine})
	return failure(errorType, err)
}

func address(login secret.Login) string {
	return net.JoinHostPort(login.Host, strconv.Itoa(int(login.Port)))
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
	if selection.HasPatterns() || e.caseInsensitive && differInCase(selection.Resolve(nil, false)) {
		var err error
		if catalogue, err = list(ctx, s, e, login); err != nil {
			return nil, err
		}
	}
	databases := selection.Resolve(catalogue, e.caseInsensitive && !differInCase(catalogue))
	names := make([]string, len(databases))
	for i, d := range databases {
		names[i] = d.Name
	}
	excluded, err := excluded(ctx, s, selection, e, login, names)
	if err != nil {
		return nil, err
	}
	databases = slices.DeleteFunc(databases, func(d purge.Database) bool { return excluded[d.Name] })
	if len(databases) == 0 {
		return nil, fmt.Errorf("none of the server's %s databases matches DATABASES", purge.Grouped(len(catalogue)))
	}
	return databases, nil
}

// excluded returns those of names that only the server knows to be excluded.
func excluded(ctx context.Context, s server, selection purge.Selection, e engine, login secret.Login, names []string) (map[string]bool, error) {
	names = selection.Unsettled(names)
	c, compares := s.(comparer)
	if !e.caseInsensitive || !compares || len(names) == 0 {
		return nil, nil
	}
	matched, err := c.Matching(ctx, e.via(login), names, selection.Exclusions())
	if err != nil {
		return nil, fmt.Errorf("which databases DATABASES excludes, as the server compares names: %w", err)
	}
	excluded := make(map[string]bool, len(matched))
	for _, name := range matched {
		excluded[name] = true
	}
	return excluded, nil
}

// list reads which databases the server has.
func list(ctx context.Context, s server, e engine, login secret.Login) ([]purge.Database, error) {
	in := e.via(login)
	catalogue, err := s.Databases(ctx, in)
	if err == nil {
		return catalogue, nil
	}
	err = fmt.Errorf("the server's list of databases, which is read in %s: %w", in, err)
	if unfit, ok := errors.AsType[purge.NotPurgeable](err); ok && unfit.Kind == purge.NoDatabase && login.Database != "" {
		err = fmt.Errorf("%w: have the secret or DATABASE_URL name one that exists, or none", err)
	}
	return nil, err
}

// differInCase tells whether there are names that differ in their letter case alone. Only
// a server has those to which they are two.
func differInCase(databases []purge.Database) bool {
	seen := map[string]bool{}
	for _, d := range databases {
		folded := purge.Fold(d.Name)
		if seen[folded] {
			return true
		}
		seen[folded] = true
	}
	return false
}

// fetch reads the login, with what the configuration says instead.
func (h *handler) fetch(ctx context.Context, stage string) (secret.Login, error) {
	if h.config.secretID == "" {
		return h.config.login, nil
	}
	login, err := secret.Fetch(ctx, h.secrets, h.config.secretID, stage)
	if err != nil {
		return login, err
	}
	if login, err = h.config.complete(login); err != nil {
		return login, fmt.Errorf("%s %w", h.source(), err)
	}
	return login, nil
}

// source is where the login comes from, for messages.
func (h *handler) source() string {
	if h.config.secretID == "" {
		return "DATABASE_URL"
	}
	return "the secret"
}

// selection returns the configured one, else the secret's database, else Ed-Fi's
// own name for it.
func (h *handler) selection(login secret.Login) purge.Selection {
	if h.config.databases != nil {
		return *h.config.databases
	}
	return purge.Select(cmp.Or(login.Database, "EdFi_Admin"))
}

// connector returns what makes the server from a login, for one run; what is canceled
// there may linger so long.
func (h *handler) connector(linger time.Duration) func(secret.Login) server {
	r := resources{memory: new(sqlserver.Memory), linger: linger}
	return func(login secret.Login) server {
		engine, _ := engineNamed(login.Engine)
		r := r
		if login.TLS != secret.Disable {
			r.tls = &tls.Config{RootCAs: h.config.roots, ServerName: login.Host, MinVersion: tls.VersionTLS12}
		}
		return engine.connect(login, h.config, r)
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
