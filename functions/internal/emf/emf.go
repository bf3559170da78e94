// Package emf writes CloudWatch metrics in the embedded metric format: one
// JSON object a line on standard output, from which CloudWatch Logs makes
// metrics, with no API call and no permission.
package emf

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Run is the metric line of one run in one database.
type Run struct {
	Namespace    string
	FunctionName string
	Database     string // "" where none was reached
	PerDatabase  bool   // also publish under the database's name
	Time         time.Time

	DeletedRows      int64
	Batches          int
	Duration         time.Duration
	Failed           bool
	Incomplete       bool           // the run stopped before it was done
	OldestExpiredAge *time.Duration // of the oldest row left; nil where it is not known

	// Properties, found by Logs Insights.
	StopReason string
	Engine     string
	RequestID  string
	Version    string
	Cutoff     string // "" while unknown
}

type metric struct {
	Name string
	Unit string
}

type directive struct {
	Namespace  string
	Dimensions [][]string
	Metrics    []metric
}

type metadata struct {
	Timestamp         int64 // milliseconds since 1970
	CloudWatchMetrics []directive
}

type line struct {
	AWS metadata `json:"_aws"`

	FunctionName string
	Database     string `json:",omitempty"`

	DeletedRows      int64
	Batches          int
	Duration         float64 // milliseconds
	Failures         int
	Incomplete       int
	OldestExpiredAge *float64 `json:",omitempty"` // seconds

	DatabaseName string `json:"database,omitempty"`
	StopReason   string `json:"stopReason"`
	Engine       string `json:"engine,omitempty"`
	RequestID    string `json:"requestId"`
	Version      string `json:"version"`
	Cutoff       string `json:"cutoff,omitempty"`
}

// Write writes r to w in one call, so that lines of others don't mix with it.
func Write(w io.Writer, r Run) error {
	l := line{
		FunctionName: r.FunctionName,
		DeletedRows:  r.DeletedRows,
		Batches:      r.Batches,
		Duration:     float64(r.Duration.Microseconds()) / 1000,
		Failures:     count(r.Failed),
		Incomplete:   count(r.Incomplete),
		DatabaseName: r.Database,
		StopReason:   r.StopReason,
		Engine:       r.Engine,
		RequestID:    r.RequestID,
		Version:      r.Version,
		Cutoff:       r.Cutoff,
	}
	metrics := []metric{
		{"DeletedRows", "Count"},
		{"Batches", "Count"},
		{"Duration", "Milliseconds"},
		{"Failures", "Count"},
		{"Incomplete", "Count"},
	}
	if r.OldestExpiredAge != nil {
		seconds := r.OldestExpiredAge.Seconds()
		l.OldestExpiredAge = &seconds
		metrics = append(metrics, metric{"OldestExpiredAge", "Seconds"})
	}
	// A dimension set that CloudWatch refuses may take the rest of its directive
	// with it, so each has one of its own.
	l.AWS = metadata{r.Time.UnixMilli(), []directive{{r.Namespace, [][]string{{"FunctionName"}}, metrics}}}
	if r.Database != "" && r.PerDatabase {
		l.Database = dimension(r.Database)
		l.AWS.CloudWatchMetrics = append(l.AWS.CloudWatchMetrics,
			directive{r.Namespace, [][]string{{"FunctionName", "Database"}}, metrics})
	}
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

func count(is bool) int {
	if is {
		return 1
	}
	return 0
}

// longestDimension is how many characters CloudWatch takes as a dimension's value.
const longestDimension = 1024

// dimension returns name in the form that CloudWatch takes: printable ASCII, not all
// of it blank, and without a colon in front. All else is percent-encoded, and so is
// the percent sign itself, so that no two names become one.
func dimension(name string) string {
	var b strings.Builder
	blank := strings.TrimSpace(name) == ""
	for i := range len(name) {
		c := name[i]
		if c < ' ' || c > '~' || c == '%' || c == ':' && i == 0 || blank {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()[:min(b.Len(), longestDimension)]
}
