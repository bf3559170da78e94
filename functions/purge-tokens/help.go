package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// setting is a variable of the environment, as the help tells of it.
type setting struct{ name, unset, meaning string }

// settings are all that readConfig reads.
var settings = []setting{
	{"SECRET_ID", "required", "name or ARN of the secret"},
	{"DATABASE_URL", "", "the login, in place of a secret"},
	{"DATABASES", "the secret's", "names; patterns * ?; exclusions !"},
	{"TABLES", "ClientAccessTokens", "which tables are purged"},
	{"LOG_RETENTION", "2160h", "how long ClientAccessTokenLogs stay"},
	{"DB_ENGINE", "the secret's", "postgres or sqlserver"},
	{"DB_HOST", "the secret's", "where the secret names none"},
	{"DB_PORT", "5432, 1433", "where the secret names none"},
	{"DB_TLS", "verify-full", "or strict, or disable"},
	{"DB_CA_BUNDLE", "", "PEM file to trust as well"},
	{"GRACE_PERIOD", "0s", "how long past expiration rows stay"},
	{"BATCH_SIZE", "5000, 2000", "most rows one statement deletes"},
	{"BATCH_TARGET", "50ms", "time that a batch aims at"},
	{"CONCURRENCY", "1", "connections that delete at once"},
	{"PARALLEL_DATABASES", "4", "databases purged at once"},
	{"PAUSE", "0s", "rest between batches"},
	{"MAX_ROWS", "0", "most rows of a run; 0 is no cap"},
	{"LOCK_TIMEOUT", "2s", "longest wait for a lock"},
	{"STOP_BEFORE", "10s", "how long before Lambda's deadline"},
	{"CONNECT_TIMEOUT", "45s", "longest wait for a server that wakes"},
	{"METRICS_PER_DATABASE", "true", "false: the function's metrics alone"},
	{"METRICS_NAMESPACE", "EdFi/TokenPurge", "CloudWatch namespace"},
}

// writeSettings writes a line for each setting.
func writeSettings(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range settings {
		fmt.Fprintf(table, "  %s\t%s\t%s\n", s.name, s.unset, s.meaning)
	}
	table.Flush() //nolint:errcheck // of w
}

// writeHelp writes what the words after help ask for.
func writeHelp(w io.Writer, about []string, columns int) error {
	v := view{columns: columns}
	switch {
	case len(about) == 0:
		fmt.Fprint(w, usage)
		writeSettings(w)
		fmt.Fprint(w, ending)
	case len(about) == 1 && about[0] == "findings":
		for _, k := range purge.Kinds {
			fmt.Fprintln(w, k.Code)
		}
	case len(about) == 2 && about[0] == "findings":
		at := slices.IndexFunc(purge.Kinds, func(k purge.Kind) bool { return k.Code == about[1] })
		if at < 0 {
			return fmt.Errorf("%s is no finding: purge-tokens help findings lists them", redact.Quote(about[1]))
		}
		k := purge.Kinds[at]
		levels := k.Level
		if k.Or != "" {
			levels += " or " + k.Or
		}
		fmt.Fprintf(w, "%s (%s)\n", k.Code, levels)
		v.wrap(w, "  "+strings.ReplaceAll(k.Mend, "`", ""), "  ")
	default:
		return errors.New("say purge-tokens help, purge-tokens help findings, or purge-tokens help findings CODE")
	}
	return nil
}
