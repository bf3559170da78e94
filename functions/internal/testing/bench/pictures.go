package main

import (
	"bytes"
	"image/color"
	"math"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	width  = 9 * vg.Inch
	height = 5 * vg.Inch
)

// colours can be told apart by those who see few of them.
var colours = []color.Color{
	color.RGBA{0, 0, 0, 255}, color.RGBA{213, 94, 0, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{204, 121, 167, 255},
	color.RGBA{230, 159, 0, 255}, color.RGBA{86, 180, 233, 255}, color.RGBA{0, 114, 178, 255}, color.RGBA{120, 120, 120, 255},
}

// render answers the pictures by file name.
func render(curves []curve, phases []phase) (map[string][]byte, error) {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	rates, err := drawRates(curves)
	if err != nil {
		return nil, err
	}
	latency, err := drawLatency(phases)
	return map[string][]byte{"rows.svg": rates, "latency.svg": latency}, err
}

// drawRates draws rows a second over the size of the table, both in powers of
// ten: what grows with the square falls.
func drawRates(curves []curve) ([]byte, error) {
	p := plot.New()
	p.Title.Text = "Rows deleted a second, by the size of the backlog"
	p.X.Label.Text, p.Y.Label.Text = "expired rows", "rows/s"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = powers{}, powers{}
	p.Add(plotter.NewGrid())
	for i, c := range curves {
		line, dots, err := plotter.NewLinePoints(c.points)
		if err != nil {
			return nil, err
		}
		line.Color, dots.Color = colours[i%len(colours)], colours[i%len(colours)]
		line.Width, dots.Radius = vg.Points(1.2), vg.Points(3)
		dots.Shape = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}}[i/len(colours)%3]
		if strings.HasPrefix(c.name, "purge") {
			line.Width = vg.Points(2.4)
		}
		p.Add(line, dots)
		p.Legend.Add(c.name, line, dots)
	}
	return svg(p)
}

// drawLatency draws the slowest request of each tenth of a second. Idle has no end.
func drawLatency(phases []phase) ([]byte, error) {
	p := plot.New()
	p.Title.Text = "The slowest of the API's requests in each tenth of a second"
	p.X.Label.Text, p.Y.Label.Text = "seconds since the start of the purge or the DELETE", "ms"
	p.X.Tick.Marker, p.Y.Tick.Marker = seconds{}, powers{}
	p.Y.Scale = plot.LogScale{}
	p.Add(plotter.NewGrid())
	until := 0.0
	for _, phase := range phases[1:] {
		until = max(until, phase.served[len(phase.served)-1].at)
	}
	for i, phase := range phases {
		line, err := plotter.NewLine(slowest(phase.served, until))
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = colours[i], vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(phase.name, line)
	}
	low, high := p.Y.Min, p.Y.Max
	for i, phase := range phases[1:] {
		end, err := plotter.NewLine(plotter.XYs{{X: phase.seconds, Y: low}, {X: phase.seconds, Y: high}})
		if err != nil {
			return nil, err
		}
		end.Color, end.Dashes = colours[1+i], []vg.Length{vg.Points(4), vg.Points(3)}
		p.Add(end)
		p.Legend.Add(phase.name+" ends", end)
	}
	return svg(p)
}

// slowest answers the longest time in each tenth of a second.
func slowest(served []request, until float64) plotter.XYs {
	const step = 0.1
	var points plotter.XYs
	for _, r := range served {
		x := (math.Floor(r.at/step) + 0.5) * step
		switch n := len(points); {
		case r.at > until:
			return points
		case n == 0 || points[n-1].X < x-step/2:
			points = append(points, plotter.XY{X: x, Y: r.took})
		default:
			points[n-1].Y = max(points[n-1].Y, r.took)
		}
	}
	return points
}

// svg draws the legend beside the plot, on white, for pages that are dark.
func svg(p *plot.Plot) ([]byte, error) {
	legend := p.Legend
	p.Legend = plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.Padding = vg.Points(3)
	canvas := vgsvg.New(width, height)
	c := draw.New(canvas)
	c.FillPolygon(color.White, []vg.Point{{}, {X: width}, {X: width, Y: height}, {Y: height}})
	box := legend.Rectangle(c)
	right := box.Max.X - box.Min.X + vg.Points(24)
	p.Draw(draw.Crop(c, vg.Points(8), -right-vg.Points(8), vg.Points(8), -vg.Points(8)))
	legend.Draw(draw.Crop(c, width-right, 0, 0, -vg.Points(40)))
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	// Where Liberation is missing, Arial and Helvetica are as wide.
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), err
}

// seconds labels each second.
type seconds struct{}

func (seconds) Ticks(least, most float64) []plot.Tick {
	var ticks []plot.Tick
	for v := math.Ceil(least); v <= most; v++ {
		ticks = append(ticks, plot.Tick{Value: v, Label: strconv.Itoa(int(v))})
	}
	return ticks
}

// powers labels 1, 2 and 5 times each power of ten.
type powers struct{}

func (powers) Ticks(least, most float64) []plot.Tick {
	var ticks []plot.Tick
	for power := math.Pow(10, math.Floor(math.Log10(least))); power <= most; power *= 10 {
		for _, times := range []float64{1, 2, 5} {
			if v := times * power; v >= least*0.999 && v <= most*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: brief(v)})
			}
		}
	}
	return ticks
}

// brief writes 2,000,000 as 2 M.
func brief(v float64) string {
	unit := ""
	switch {
	case v > 0.999e6:
		v, unit = v/1e6, " M"
	case v > 0.999e3:
		v, unit = v/1e3, " k"
	}
	return strconv.FormatFloat(v, 'g', 3, 64) + unit
}
