// Package emf writes CloudWatch metrics in the embedded metric format: one
// JSON object a line on standard output, from which CloudWatch Logs makes
// metrics, with no API call and no permission.
package emf

import (
	"encoding/json"
	"io"
	"time"
)

// Run is the metric line of one run in one database.
type Run struct {
	Namespace    string
	FunctionName string
	Database     string // "" publishes under the function's name alone
	Time         time.Time

	DeletedRows      int64
	Batches          int
	Duration         time.Duration
	Failed           bool
	OldestExpiredAge time.Duration

	// Properties, found by Logs Insights.
	StopReason string
	Engine     string
	RequestID  string
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
	OldestExpiredAge float64 // seconds

	StopReason string `json:"stopReason"`
	Engine     string `json:"engine,omitempty"`
	RequestID  string `json:"requestId"`
	Cutoff     string `json:"cutoff,omitempty"`
}

var metrics = []metric{
	{"DeletedRows", "Count"},
	{"Batches", "Count"},
	{"Duration", "Milliseconds"},
	{"Failures", "Count"},
	{"OldestExpiredAge", "Seconds"},
}

// Write writes r to w in one call, so that lines of others don't mix with it.
func Write(w io.Writer, r Run) error {
	l := line{
		FunctionName:     r.FunctionName,
		Database:         r.Database,
		DeletedRows:      r.DeletedRows,
		Batches:          r.Batches,
		Duration:         float64(r.Duration.Microseconds()) / 1000,
		OldestExpiredAge: r.OldestExpiredAge.Seconds(),
		StopReason:       r.StopReason,
		Engine:           r.Engine,
		RequestID:        r.RequestID,
		Cutoff:           r.Cutoff,
	}
	dimensions := [][]string{{"FunctionName"}}
	if r.Database != "" {
		dimensions = append(dimensions, []string{"FunctionName", "Database"})
	}
	if r.Failed {
		l.Failures = 1
	}
	l.AWS = metadata{r.Time.UnixMilli(), []directive{{r.Namespace, dimensions, metrics}}}
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}
