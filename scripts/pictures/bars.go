package main

import (
	"fmt"
	"html"
	"strings"
)

// series is what one colour stands for, with a value for each group. A group that
// lacks one, at the end, has no bar.
type series struct {
	name, colour string
	values       []float64
}

// Whatever font a viewer has; the panel is white, so that it is read on any page.
const (
	width = 860
	font  = `font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"`
)

// svg is a picture with a title and a line below it.
func svg(title, below string, height int, body string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d" role="img" %[3]s>
<title>%[4]s</title>
<rect x="0.5" y="0.5" width="%[5]d" height="%[6]d" rx="8" fill="#ffffff" stroke="%[7]s"/>
%[8]s%[9]s%[10]s</svg>
`, width, height, font, html.EscapeString(title), width-1, height-1, faint,
		text(24, 36, 20, ink, `font-weight="600"`, title), text(24, 60, 14, "#57606a", "", below), body)
}

func text(x, y, size int, colour, more, says string) string {
	if more != "" {
		more = " " + more
	}
	return fmt.Sprintf("<text x=\"%d\" y=\"%d\" font-size=\"%d\" fill=\"%s\"%s>%s</text>\n", x, y, size, colour, more, html.EscapeString(says))
}

// bars draws lying bars, as long as their values, group by group. Without names of
// groups the series have theirs beside the bars, and there is no legend.
func bars(title, below string, groups []string, all []series, says func(float64) string) string {
	const left, right, thick = 240, 110, 22
	most := 0.0
	for _, s := range all {
		for _, v := range s.values {
			most = max(most, v)
		}
	}
	var body strings.Builder
	y := 84
	if len(groups) > 1 {
		x := 24
		for _, s := range all {
			fmt.Fprintf(&body, "<rect x=\"%d\" y=\"%d\" width=\"14\" height=\"14\" rx=\"3\" fill=\"%s\"/>\n", x, y-4, s.colour)
			body.WriteString(text(x+20, y+8, 14, ink, "", s.name))
			x += 40 + 8*len(s.name)
		}
		y += 34
	}
	for g, group := range groups {
		if group != "" {
			body.WriteString(text(left-14, y+thick*len(all)/2+5, 14, ink, `text-anchor="end"`, group))
		}
		for _, s := range all {
			if len(groups) == 1 {
				body.WriteString(text(left-14, y+15, 14, ink, `text-anchor="end"`, s.name))
			}
			if g < len(s.values) {
				long := max(2, int(s.values[g]/most*float64(width-left-right)))
				fmt.Fprintf(&body, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"2\" fill=\"%s\"/>\n", left, y+2, long, thick-4, s.colour)
				body.WriteString(text(left+long+8, y+16, 14, ink, "", says(s.values[g])))
			}
			y += thick
		}
		y += 14
	}
	return svg(title, below, y+6, body.String())
}
