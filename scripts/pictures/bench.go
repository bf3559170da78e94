package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// bench is what benchstat printed: medians by unit and row, one for each column.
type bench struct {
	values  map[string]map[string][]float64
	lacking error
}

var (
	unitOf = regexp.MustCompile(`│\s+(\S+)\s`)
	median = regexp.MustCompile(`([\d.]+)([nµmkMG]?) ±`)
	prefix = map[string]float64{"": 1, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9}
)

// read takes the tables apart. The second line of each has the unit, and its rows
// begin with a name that ends before two blanks.
func read(text string) *bench {
	b := &bench{values: map[string]map[string][]float64{}}
	unit := ""
	for line := range strings.Lines(text) {
		if m := unitOf.FindStringSubmatch(line); m != nil {
			unit = m[1] // of two such lines the second counts
			continue
		}
		name, rest, ok := strings.Cut(line, "  ")
		medians := median.FindAllStringSubmatch(rest, -1)
		if !ok || unit == "" || len(medians) == 0 {
			continue
		}
		if b.values[unit] == nil {
			b.values[unit] = map[string][]float64{}
		}
		for _, m := range medians {
			v, _ := strconv.ParseFloat(m[1], 64) // digits and points, as the pattern has it
			b.values[unit][name] = append(b.values[unit][name], v*prefix[m[2]])
		}
	}
	return b
}

func (b *bench) has(unit string) bool { return b.values[unit] != nil }

// of returns one median. What is not there is told by err.
func (b *bench) of(unit, row string, column int) float64 {
	values := b.values[unit][row]
	if column >= len(values) {
		b.lacking = errors.Join(b.lacking, fmt.Errorf("no %s of %s, column %d", unit, row, column))
		return 0
	}
	return values[column]
}

func (b *bench) err() error { return b.lacking }
