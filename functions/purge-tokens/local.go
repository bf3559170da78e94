package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/aws/aws-lambda-go/lambda/messages"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

const usage = `Deletes expired bearer tokens from the admin databases of an Ed-Fi ODS/API.

    purge-tokens check     connect and examine
    purge-tokens dry-run   count what a purge would delete
    purge-tokens purge     delete it
    purge-tokens version   say which version this is
    purge-tokens help findings CODE
                           say what a finding means and what to do

These narrow the settings and never widen them:

    -databases A,B      some of those in DATABASES
    -tables A,B         some of those in TABLES
    -grace-period 24h   at least GRACE_PERIOD
    -max-rows n         most rows to delete
    -batch-size n       most rows one statement deletes
    -max-duration 2m    longest run

These say what is written:

    -json      the result as JSON, as the Lambda function returns it
    -metrics   also the metric lines, for a container whose standard output
               goes to CloudWatch Logs
    -v         also the log, batches included, on standard error, a row for
               each database and all findings

The settings are the function's own environment variables, with AWS_PROFILE,
AWS_REGION and so on, as for every AWS tool. In place of a secret:

    DATABASE_URL=postgres://user:password@host:5432/EdFi_Admin
    DATABASE_URL=sqlserver://user:password@host:1433?database=EdFi_Admin

or a connection string as Ed-Fi keeps it.

The settings, and what holds where they are not set; of two values the second
is SQL Server's:

`

const ending = `
Ctrl-C stops after the batches in hand; a second one stops at once.

Ends with 0 when complete, 1 when it failed, 2 for a wrong command line or
setting, 3 when it stopped before all was done.
`

// How the command ends, for scripts.
const (
	exitComplete = 0
	exitFailed   = 1
	exitUsage    = 2
	exitPartial  = 3
)

// command is what the command line asks for.
type command struct {
	request
	json, metrics, verbose bool
}

// parseArgs reads the command line. Its flags are the fields of an event, and
// the rules for them are the same.
func parseArgs(args []string) (c command, err error) {
	flags := flag.NewFlagSet("purge-tokens", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&c.json, "json", false, "")
	flags.BoolVar(&c.metrics, "metrics", false, "")
	flags.BoolVar(&c.verbose, "v", false, "")
	field := func(name, field string, toJSON func(string) string) {
		flags.Func(name, "", func(text string) error {
			return requestFields[field](&c.request, json.RawMessage(toJSON(text)))
		})
	}
	asIs := func(text string) string { return text }
	field("grace-period", "gracePeriod", strconv.Quote)
	field("max-duration", "maxDuration", strconv.Quote)
	field("max-rows", "maxRows", asIs)
	field("batch-size", "batchSize", asIs)
	list := func(text string) string {
		names := strings.Split(text, ",")
		for i := range names {
			names[i] = strings.TrimSpace(names[i])
		}
		list, _ := json.Marshal(names) // strings alone
		return string(list)
	}
	field("databases", "databases", list)
	field("tables", "tables", list)
	if len(args) == 0 {
		return c, errors.New("say what to do")
	}
	if slices.Contains([]string{"-h", "-help", "--help"}, args[0]) {
		return c, flag.ErrHelp
	}
	if err := requestFields["action"](&c.request, json.RawMessage(strconv.Quote(args[0]))); err != nil {
		return c, fmt.Errorf("%s: what to do %w", redact.Quote(args[0]), err)
	}
	if err := flags.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		return c, err
	} else if err != nil { // it quotes a word, which may be a database's URL at the wrong place
		return c, errors.New(redact.Text(err.Error()))
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("%s is one word too many", redact.Quote(flags.Arg(0)))
	}
	return c, nil
}

// local runs the command and returns its exit code.
func local(args []string) int {
	if len(args) == 1 && slices.Contains([]string{"version", "-version", "--version"}, args[0]) {
		fmt.Printf("purge-tokens %s, commit %s, %s\n", version, commit, runtime.Version())
		return exitComplete
	}
	if len(args) > 0 && args[0] == "help" {
		columns, _ := sizeOf(os.Stdout)
		if err := writeHelp(os.Stdout, args[1:], columns); err != nil {
			return exitWith(exitUsage, err)
		}
		return exitComplete
	}
	c, err := parseArgs(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		writeHelp(os.Stdout, nil, 0) //nolint:errcheck // nothing is asked for that there might not be
		return exitComplete
	case len(args) == 0:
		writeHelp(os.Stderr, nil, 0) //nolint:errcheck // as above
		return exitUsage
	case err != nil:
		return exitWith(exitUsage, fmt.Errorf("%w (purge-tokens -h lists what there is)", err))
	}
	return execute(c)
}

// execute does what the command line asks for and returns its exit code.
func execute(c command) int {
	h := newHandler()
	if h.fault != nil {
		return exitWith(exitUsage, fmt.Errorf("%s: %w", configurationError, h.fault))
	}
	h.watch = newProgress(os.Stderr)
	h.metrics = io.Discard
	if c.metrics {
		h.metrics = os.Stdout
	}
	level := slog.LevelWarn
	switch {
	case c.verbose:
		level = slog.LevelDebug
	case h.watch.terminal: // which shows what the run waits for, and in the end what was found
		level = slog.LevelError
	}
	h.log = slog.New(slog.NewTextHandler(h.watch, &slog.HandlerOptions{Level: level}))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // so that the second signal ends the process
	h.watch.start(ctx)
	result, err := h.run(ctx, c.request)
	h.watch.stop()

	if ctx.Err() != nil && result.Databases == nil {
		return exitWith(exitPartial, errors.New("interrupted before anything was done"))
	}
	var failed messages.InvokeResponse_Error
	if errors.As(err, &failed) && result.Databases == nil { // else the result tells
		code := exitFailed
		if failed.Type == invalidEvent || failed.Type == configurationError {
			code = exitUsage
		}
		return exitWith(code, fmt.Errorf("%s: %s", failed.Type, failed.Message))
	}
	if c.json {
		text, _ := json.MarshalIndent(result, "", "  ") // nothing in it can fail
		fmt.Printf("%s\n", text)
	} else {
		columns, rows := sizeOf(os.Stdout)
		view{columns, rows, c.verbose, hasColours(os.Stdout)}.write(os.Stdout, result)
	}
	switch result.Status {
	case purge.Complete:
		return exitComplete
	case purge.Partial:
		return exitPartial
	default:
		return exitFailed
	}
}

// exitWith says what is wrong.
func exitWith(code int, err error) int {
	fmt.Fprintln(os.Stderr, "purge-tokens:", err)
	return code
}
