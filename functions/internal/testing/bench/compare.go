package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot/plotter"
)

// entry is a cleaner, and in how many rounds it takes part.
type entry struct {
	cleaner
	runs int
}

// measured is what was measured of a cleaner, a value for each run.
type measured struct {
	name    string
	rate    []float64 // rows a second
	ratio   []float64 // of the rate to the first cleaner's of the same round
	longest []float64 // statement, ms
	pages   []float64 // looked at for each row deleted
	memory  []float64 // of the function, MB; none if unknown
}

// compare has all cleaners empty the same table in turn, round by round, and
// another one begin in each.
func compare(ctx context.Context, s *stage, t table, entries []entry) ([]measured, error) {
	results := make([]measured, len(entries))
	for i, e := range entries {
		results[i].name = e.name
	}
	// The first run on a new table is slower, whoever has it; on a large one it
	// makes no difference.
	if entries[0].runs > 1 && t.expired <= 1_000_000 {
		if _, err := measure(ctx, s, t, entries[0].cleaner, new(measured)); err != nil {
			return nil, err
		}
	}
	for round := range entries[0].runs {
		rates := make([]float64, len(entries))
		for turn := range entries {
			i := (round + turn) % len(entries)
			if round >= entries[i].runs {
				continue
			}
			say(fmt.Sprintf("%s rows, round %d of %d: %s", thousands(t.expired), round+1, entries[0].runs, entries[i].name))
			seconds, err := measure(ctx, s, t, entries[i].cleaner, &results[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", entries[i].name, err)
			}
			rates[i] = float64(t.expired) / seconds
		}
		for i, v := range rates {
			if v > 0 {
				results[i].rate = append(results[i].rate, v)
				results[i].ratio = append(results[i].ratio, v/rates[0])
			}
		}
	}
	return results, nil
}

// measure runs a cleaner on a fresh copy and answers its seconds.
func measure(ctx context.Context, s *stage, t table, c cleaner, m *measured) (float64, error) {
	if err := s.copy(ctx); err != nil {
		return 0, err
	}
	if t.snapshot {
		held, err := s.snapshot(ctx)
		if err != nil {
			return 0, err
		}
		defer held.Close(ctx) //nolint:errcheck // its transaction is nothing to keep
	}
	if err := s.mark(ctx); err != nil {
		return 0, err
	}
	result, err := c.run(ctx, s)
	if err != nil {
		return 0, err
	}
	longest, _, err := s.statements()
	if err != nil {
		return 0, err
	}
	if result.memory > 0 {
		m.memory = append(m.memory, result.memory)
	}
	pages, err := s.look(ctx)
	m.longest, m.pages = append(m.longest, longest), append(m.pages, pages/float64(t.expired))
	return result.seconds, err
}

// curve is the rate of a cleaner over the size of the table.
type curve struct {
	name   string
	points plotter.XYs
}

func addPoint(curves []curve, name string, rows int, rate float64) []curve {
	i := slices.IndexFunc(curves, func(c curve) bool { return c.name == name })
	if i < 0 {
		i, curves = len(curves), append(curves, curve{name: name})
	}
	curves[i].points = append(curves[i].points, plotter.XY{X: float64(rows), Y: rate})
	return curves
}

// rate answers the point of a curve at so many rows.
func rate(curves []curve, name string, rows int) float64 {
	for _, c := range curves {
		for _, p := range c.points {
			if c.name == name && int(p.X) == rows {
				return p.Y
			}
		}
	}
	return math.NaN()
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// quantile answers the value below which a part q of the sorted values lies.
func quantile(sorted []float64, q float64) float64 {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
