package redact

import (
	"regexp"
	"strings"
)

// Secrets that stand apart from their names, as YAML, XML, lists of settings and lists of
// arguments have them.

var (
	// ofPair is what stands between a name and its value where both are values: "Name":
	// "DB_PASSWORD", "Value": "..".
	ofPair = regexp.MustCompile(`(?i)^\\*["']?[\s,]*\\*["']?\w*value\\*["']?\s*[:=]\s*`)
	// isPair follows a key that is no secret but has a name.
	isPair = regexp.MustCompile(`(?i)^\\*["']?\s*[:=]\s*\\*["'][^"'\s]*` + ofPair.String()[len(`(?i)^`):])
	// attributes end with the element that they are of.
	attributes = regexp.MustCompile(`^(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*>`)
	element    = regexp.MustCompile(`</?(?:[\w.-]+:)?$`)
	ofCall     = regexp.MustCompile(`(?i)\bset_config\s*\(\s*e?'$`)
	ofSet      = regexp.MustCompile(`(?i)\bset\s+(?:session\s+|local\s+)?$`)
	setTo      = regexp.MustCompile(`^(?i)\s+to\s+`)
	aComma     = regexp.MustCompile(`^\\*["']?\s*,\s*`)
)

// apart returns where the value stands that is apart from the name, which ends at end;
// from and to are the same where there is none.
func (n named) apart(end int) (from, to int) {
	before, rest := n.s[max(0, n.from-40):n.from], n.s[end:]
	inElement := element.MatchString(before)
	switch {
	case inElement && attributes.MatchString(rest):
		start := end + len(attributes.FindString(rest))
		return start, start + untilTag(n.s[start:])
	case (n.quoted || inElement || strings.Contains(ofPair.FindString(rest), "\n")) && ofPair.MatchString(rest):
		return n.item(end + len(ofPair.FindString(rest)))
	case (strings.HasPrefix(n.name, "-") || ofCall.MatchString(before)) && aComma.MatchString(rest):
		return n.item(end + len(aComma.FindString(rest)))
	case ofSet.MatchString(before) && setTo.MatchString(rest):
		return n.item(end + len(setTo.FindString(rest)))
	}
	return 0, 0
}

// item returns where an item of a list ends that begins at start.
func (n named) item(start int) (from, to int) {
	if rest := n.s[start:]; !isQuote(rest) {
		return start, start + len(trimClosing(rest[:until(rest, " \t\r\n,;]})")]))
	}
	return start, quotedEnd(n.s, start)
}

// untilTag returns how long the text of an element of XML is.
func untilTag(text string) int {
	const opens, closes = "<![CDATA[", "]]>"
	if strings.HasPrefix(text, opens) {
		data, _, _ := strings.Cut(text, closes)
		return min(len(text), len(data)+len(closes))
	}
	return until(text, "<")
}

var (
	aKey = regexp.MustCompile(`(?m)^[ \t]*(?:- +)?["']?[\w.-]+["']?:(?:[ \t]|\r?$)`)
	// A block of YAML has the lines below it that are further in.
	aTag   = regexp.MustCompile(`^(?:![\w!]*|&\w+) +\S`)
	aBlock = regexp.MustCompile(`^(?:[|>][-+0-9]*|[!&]\S+)?[ \t]*(?:#[^\n]*)?\r?\n`)
	aBreak = regexp.MustCompile(`^\r?\n`)
	// What Go has behind a field of a struct or a key of a map, and at their end.
	nextField = regexp.MustCompile(`[ ,]\s*[\w.]+:|[}\]]`)
)

// below returns how long the value is that begins at start, behind the colon of a key, and
// goes on below or to the end of the line; 0 is none.
func (n named) below(start int) int {
	rest := n.s[start:]
	if !strings.ContainsAny(n.s[start-1:start], " \t") && !aBreak.MatchString(rest) { // YAML wants a blank there
		return 0
	}
	line := n.s[1+strings.LastIndexByte(n.s[:n.from], '\n') : n.from]
	if head := aBlock.FindString(rest); head != "" && (!bareName.MatchString(n.name) || strings.ContainsAny(head[:1], "|>")) {
		return furtherIn(rest, len(head), len(line)-len(strings.TrimLeft(line, " \t-")))
	}
	inLine := strings.Trim(line, " \t-\"'") != ""
	if inLine && !strings.HasPrefix(rest, "!!") || !aTag.MatchString(rest) && (inLine || len(aKey.FindAllStringIndex(n.s, 2)) < 2) {
		return 0
	}
	value, _, _ := strings.Cut(rest[:until(rest, "\r\n")], " #")
	return len(strings.TrimRight(value, " \t"))
}

// furtherIn returns how long text is up to the end of the lines, from this place on, that
// are further in than a key; 0 is that there is none.
func furtherIn(text string, from, key int) int {
	length := from
	for next := range strings.Lines(text[from:]) {
		line := strings.TrimLeft(next, " \t")
		if strings.TrimSpace(line) != "" && len(next)-len(line) <= key {
			break
		}
		length += len(next)
	}
	if value := strings.TrimRight(text[:length], " \t\r\n"); len(value) > from {
		return len(value)
	}
	return 0
}

// inDump returns how long the value is that begins at start, where Go has printed a struct
// or a map around it; 0 is that it has not.
func (n named) inDump(start int) int {
	line := n.s[1+strings.LastIndexByte(n.s[:n.from], '\n') : n.from]
	if open := strings.LastIndexAny(line, "{["); open < 0 || strings.HasPrefix(n.s[start:], Mark) || strings.ContainsAny(line[open:], "}]") {
		return 0
	}
	rest := n.s[start:]
	if at := nextField.FindStringIndex(rest[:until(rest, "\r\n")]); at != nil {
		return at[0]
	}
	return 0
}
