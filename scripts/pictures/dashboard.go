package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// widget is one of the dashboard's, as CloudWatch reads it. A dashboard is 24 wide.
type widget struct {
	Type                string
	X, Y, Width, Height int
	Properties          struct {
		Title       string
		Stacked     bool
		Alarms      []string
		Metrics     [][]struct{ Expression string }
		Annotations struct {
			Horizontal []struct {
				Label string
				Value float64
			}
		}
	}
}

var (
	body      = regexp.MustCompile(`(?ms)^      DashboardBody: !Sub\n        - \|\n(.*?)^        - `)
	threshold = regexp.MustCompile(`(?ms)^  MaxExpiredAge:\n.*?^    Default: '(\d+)'`)
	variable  = regexp.MustCompile(`\$\{(\w+::)?(\w+)\}`)
	metric    = regexp.MustCompile(`MetricName="(\w+)"`)
	alarmName = regexp.MustCompile(`:alarm:(\w+)Alarm$`)
)

// dashboard draws the template's dashboard with sample data of three days.
func dashboard(template string) (string, error) {
	found, age := body.FindStringSubmatch(template), threshold.FindStringSubmatch(template)
	if found == nil || age == nil {
		return "", errors.New("no dashboard, or no MaxExpiredAge")
	}
	var board struct{ Widgets []widget }
	filled := variable.ReplaceAllString(strings.ReplaceAll(found[1], "${MaxExpiredAge}", age[1]), "$2")
	if err := json.Unmarshal([]byte(filled), &board); err != nil {
		return "", err
	}
	const column, row, top = 34, 26, 80
	var drawn strings.Builder
	bottom := 0
	for _, w := range board.Widgets {
		f := frame{x: 22 + w.X*column, y: top + w.Y*row, width: w.Width*column - 8, height: w.Height*row - 8}
		bottom = max(bottom, f.y+f.height)
		fmt.Fprintf(&drawn, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"4\" fill=\"none\" stroke=\"%s\"/>\n", f.x, f.y, f.width, f.height, faint)
		if w.Type == "alarm" {
			f.alarms(&drawn, w.Properties.Alarms)
			continue
		}
		name := metric.FindStringSubmatch(w.Properties.Metrics[0][0].Expression)
		if name == nil || samples[name[1]] == nil {
			return "", fmt.Errorf("no sample data for the widget %q", w.Properties.Title)
		}
		f.chart(&drawn, w, samples[name[1]])
	}
	for tenant, colour := range colours {
		x := 614 + tenant*74
		fmt.Fprintf(&drawn, "<rect x=\"%d\" y=\"51\" width=\"10\" height=\"10\" rx=\"2\" fill=\"%s\"/>\n", x, colour)
		drawn.WriteString(text(x+14, 60, 12, ink, "", fmt.Sprintf("Tenant%d", tenant+1)))
	}
	return svg("The dashboard of the stack", "SAMPLE DATA of three tenants over three days, in the template's own widgets", bottom+14, drawn.String()), nil
}

// Half-hours of three days; tenants by their numbers.
const points, tenants = 144, 3

// colours are those of the tenants.
var colours = [tenants]string{blue, orange, sky}

// samples are made-up values of each metric: a school's days, one hour in which a
// lock kept the second tenant's rows, and one failed run of it.
var samples = map[string]func(tenant, i int) float64{
	"DeletedRows": func(tenant, i int) float64 {
		uneven := 1 + 0.15*math.Sin(float64(i*(7+tenant)))
		return math.Round((40 + 900*school(i)) * uneven / float64(tenant+1))
	},
	"OldestExpiredAge": func(tenant, i int) float64 {
		if tenant == 1 && i >= 76 && i < 79 {
			return float64(i-75) * 1800
		}
		return 0
	},
	"Duration": func(tenant, i int) float64 {
		return math.Round(60 + 25*float64(tenant) + 4*math.Sin(float64(i*(3+tenant))) + 80*school(i)/float64(tenant+1))
	},
	"Failures": func(tenant, i int) float64 {
		if tenant == 1 && i == 76 {
			return 1
		}
		return 0
	},
	"Incomplete": func(tenant, i int) float64 {
		if tenant == 1 && i >= 76 && i < 79 {
			return 1
		}
		return 0
	},
}

// school is how busy a half-hour is, from 0 to 1 at noon.
func school(i int) float64 {
	off := (math.Mod(float64(i)/2, 24) - 12) / 3.6
	return math.Exp(-off * off)
}

// frame is a place in the picture.
type frame struct{ x, y, width, height int }

// alarms draws a row of boxes, all of them well.
func (f frame) alarms(out *strings.Builder, arns []string) {
	step := (f.width - 10) / max(1, len(arns))
	for i, arn := range arns {
		name := kebab(alarmName.FindStringSubmatch(arn)[1])
		fmt.Fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"3\" fill=\"#e6f4ea\"/>\n", f.x+10+i*step, f.y+8, step-10, f.height-16)
		out.WriteString(text(f.x+20+i*step, f.y+f.height/2+5, 13, "#1a6b34", "", "OK  "+name))
	}
}

// kebab writes DeadLetters as dead-letters.
func kebab(name string) string {
	return strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(name, "$1-$2"))
}

// chart draws a widget of lines, or of areas on one another.
func (f frame) chart(out *strings.Builder, w widget, sample func(tenant, i int) float64) {
	out.WriteString(text(f.x+12, f.y+20, 13, ink, `font-weight="600"`, w.Properties.Title))
	plot := frame{x: f.x + 56, y: f.y + 34, width: f.width - 70, height: f.height - 58}
	most := 1.0
	for i := range points {
		sum := 0.0
		for tenant := range tenants {
			v := sample(tenant, i)
			if sum += v; !w.Properties.Stacked {
				sum = v
			}
			most = max(most, sum)
		}
	}
	for _, a := range w.Properties.Annotations.Horizontal {
		most = max(most, a.Value*1.15)
	}
	most = round(most)
	for _, part := range []float64{0, 0.5, 1} {
		y := plot.at(0, part).y
		fmt.Fprintf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%[3]d\" y2=\"%[3]d\" stroke=\"%s\"/>\n", plot.x, plot.x+plot.width, y, faint)
		out.WriteString(text(plot.x-6, y+4, 11, "#57606a", `text-anchor="end"`, short(most*part)))
	}
	for day, says := range []string{"-3 d", "-2 d", "-1 d", "now"} {
		anchor := []string{"start", "middle", "middle", "end"}[day]
		out.WriteString(text(plot.x+plot.width*day/3, plot.y+plot.height+16, 11, "#57606a", `text-anchor="`+anchor+`"`, says))
	}
	base := make([]float64, points)
	for tenant, colour := range colours {
		plot.line(out, base, w.Properties.Stacked, colour, most, func(i int) float64 { return sample(tenant, i) })
	}
	for _, a := range w.Properties.Annotations.Horizontal {
		y := plot.at(0, a.Value/most).y
		fmt.Fprintf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%[3]d\" y2=\"%[3]d\" stroke=\"%s\" stroke-dasharray=\"5 3\"/>\n", plot.x, plot.x+plot.width, y, red)
		out.WriteString(text(plot.x+plot.width, y-5, 11, red, `text-anchor="end"`, a.Label))
	}
}

// line draws one tenant's values. Stacked ones are an area above base, which grows.
func (f frame) line(out *strings.Builder, base []float64, stacked bool, colour string, most float64, value func(i int) float64) {
	var there, back []string
	for i := range points {
		from := 0.0
		if stacked {
			from = base[i]
			base[i] += value(i)
		}
		part := float64(i) / (points - 1)
		p := f.at(part, (from+value(i))/most)
		there = append(there, fmt.Sprintf("%d,%d", p.x, p.y))
		p = f.at(part, from/most)
		back = append([]string{fmt.Sprintf("%d,%d", p.x, p.y)}, back...)
	}
	if stacked {
		fmt.Fprintf(out, "<polygon points=\"%s\" fill=\"%s\" fill-opacity=\"0.75\"/>\n", strings.Join(append(there, back...), " "), colour)
		return
	}
	fmt.Fprintf(out, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.6\"/>\n", strings.Join(there, " "), colour)
}

// at returns the place of parts of the width, from the left, and of the height, from
// below.
func (f frame) at(x, y float64) frame {
	return frame{x: f.x + int(x*float64(f.width)), y: f.y + f.height - int(y*float64(f.height))}
}

// round returns the next number up that an axis ends at well, as its half does.
func round(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, first := range []float64{1, 1.5, 2, 2.5, 3, 4, 5, 6, 8} {
		if first*power >= v {
			return first * power
		}
	}
	return 10 * power
}

// short writes a number of an axis, as all numbers here.
func short(v float64) string {
	s := strconv.FormatFloat(v, 'f', -1, 64)
	if v >= 1000 {
		s = s[:len(s)-3] + "," + s[len(s)-3:]
	}
	return s
}
