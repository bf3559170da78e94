package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestThePicturesAreWhatTheirSourcesSay(t *testing.T) {
	drawn, err := draw("../..")
	if err != nil {
		t.Fatal(err)
	}
	for name, svg := range drawn {
		if is, err := os.ReadFile("../../docs/pictures/" + name); err != nil || string(is) != svg {
			t.Errorf("docs/pictures/%s is stale: go generate ./scripts/pictures (%v)", name, err)
		}
		for decoder := xml.NewDecoder(strings.NewReader(svg)); ; {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	if !strings.Contains(drawn["dashboard.svg"], "SAMPLE DATA") {
		t.Error("the dashboard's data are not said to be samples")
	}
}

const table = `
                      │   plain    │          purge          │      purge-2conns       │
                      │   rows/s   │  rows/s     vs base     │  rows/s     vs base     │
Purge 1M                2.5M ±  6%   700.5k ± 7%  -4.84% (p=0.017 n=9)   2.762M ±  3%   +3.05% (p=0.008 n=9)
Purge 1M-no-index       1.000M ± 8%   2.192M ±  8%  -14.70% (p=0.002 n=6)
¹ benchmark set differs from baseline; geomeans may not be comparable

                      │ bin/bench.txt │
                      │ issue-p50-µs  │
API idle                  521.6 ± 14%
API plain                1.256k ± 54%
`

func TestATableIsReadWithItsPrefixes(t *testing.T) {
	b := read(table)
	for _, c := range []struct {
		unit, row string
		column    int
		want      float64
	}{
		{"rows/s", "Purge 1M", 0, 2.5e6},
		{"rows/s", "Purge 1M", 1, 700_500},
		{"rows/s", "Purge 1M", 2, 2.762e6},
		{"rows/s", "Purge 1M-no-index", 1, 2.192e6},
		{"issue-p50-µs", "API idle", 0, 521.6},
		{"issue-p50-µs", "API plain", 0, 1256},
	} {
		if got := b.of(c.unit, c.row, c.column); got < c.want*0.9999 || got > c.want*1.0001 {
			t.Errorf("%s of %s, column %d: %v, not %v", c.unit, c.row, c.column, got, c.want)
		}
	}
	if err := b.err(); err != nil {
		t.Error(err)
	}
	b.of("rows/s", "Purge 1M-no-index", 2)
	if b.err() == nil {
		t.Error("what is not there is taken for measured")
	}
}

// The bars of a picture are as long as their values, and one of each group is there.
func TestBarsAreAsLongAsTheirValues(t *testing.T) {
	svg := bars("a", "b", []string{"x", "y"}, []series{{"one", blue, []float64{1, 4}}, {"two", orange, []float64{2}}}, func(float64) string { return "n" })
	lengths := ""
	for _, m := range regexp.MustCompile(`x="240" y="\d+" width="(\d+)"`).FindAllStringSubmatch(svg, -1) {
		lengths += m[1] + " "
	}
	if lengths != "127 255 510 " {
		t.Errorf("they are %s", lengths)
	}
}

func TestADashboardWithoutSampleDataIsRefused(t *testing.T) {
	text, err := os.ReadFile("../../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dashboard(strings.Replace(string(text), `MetricName=\"Failures\"`, `MetricName=\"Others\"`, 1)); err == nil {
		t.Error("it is drawn")
	}
	svg, err := dashboard(strings.Replace(string(text), `"title": "Failures"`, `"title": "Faults & more"`, 1))
	if err != nil || !strings.Contains(svg, "Faults &amp; more") {
		t.Errorf("%v\n%s", err, svg)
	}
}
