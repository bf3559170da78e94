package stack

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
)

// What CloudWatch makes of the template's alarms is computed here, from the numbers
// in the template: periods, how many of them must breach, what a missing one counts
// for, metric math, the clock that an alarm follows, and its warm-up.

// alarm is an AWS::CloudWatch::Alarm. Times are minutes.
type alarm struct {
	namespace, metric, stat string
	period                  int
	fill                    string // the second argument of FILL, "" without
	evaluate, toAlarm       int    // periods
	breaches                func(float64) bool
	missing                 string // TreatMissingData
	wallClock               bool   // whole periods of the clock, not the last ones before now
	warmUp                  int
}

// alarmOf reads an alarm's properties, and fails on one that it does not know.
func alarmOf(t *testing.T, p object) alarm {
	t.Helper()
	number := func(v any) float64 {
		n, err := strconv.ParseFloat(fmt.Sprint(v), 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a := alarm{missing: fmt.Sprint(p["TreatMissingData"]), evaluate: int(number(p["EvaluationPeriods"]))}
	a.toAlarm = a.evaluate
	if p["DatapointsToAlarm"] != nil {
		a.toAlarm = int(number(p["DatapointsToAlarm"]))
	}
	metric, stat, period := p, p["Statistic"], p["Period"]
	if p["Metrics"] != nil {
		metrics := p["Metrics"].([]any)
		query, expression := metrics[0].(object), metrics[1].(object)
		m := regexp.MustCompile(`^FILL\((\w+), (\w+)\)$`).FindStringSubmatch(expression["Expression"].(string))
		if len(metrics) != 2 || m == nil || m[1] != query["Id"] || query["ReturnData"] != false {
			t.Fatalf("the test knows no metrics like %s", pretty(metrics))
		}
		a.fill = m[2]
		of := query["MetricStat"].(object)
		metric, stat, period = of["Metric"].(object), of["Stat"], of["Period"]
	}
	a.namespace, a.metric, a.stat = metric["Namespace"].(string), metric["MetricName"].(string), stat.(string)
	seconds := int(number(period))
	a.period = seconds / 60
	if a.evaluate*seconds > 604800 || seconds < 3600 && a.evaluate*seconds > 86400 || seconds%60 != 0 {
		t.Errorf("CloudWatch refuses %d periods of %d seconds", a.evaluate, seconds)
	}
	threshold := number(p["Threshold"])
	switch p["ComparisonOperator"] {
	case "GreaterThanThreshold":
		a.breaches = func(v float64) bool { return v > threshold }
	case "LessThanThreshold":
		a.breaches = func(v float64) bool { return v < threshold }
	default:
		t.Fatalf("the test knows no %v", p["ComparisonOperator"])
	}
	if window, ok := p["EvaluationWindow"].(object); ok {
		same(t, "window", window, `{"WallClockWindow": {"Timezone": "UTC"}}`)
		if a.wallClock = true; !slices.Contains([]int{60, 300, 3600, 86400, 604800}, seconds) {
			t.Errorf("the clock has no period of %d seconds", seconds)
		}
	}
	if warmUp, ok := p["WarmUpConfiguration"].(object); ok {
		if a.warmUp = int(number(warmUp["WarmUpPeriodDurationInMinutes"])); a.warmUp > 2880 || warmUp["OnlyStartEvaluatingAfterWarmUpPeriodEnds"] != true {
			t.Errorf("warm-up %v", warmUp)
		}
	}
	for name := range p {
		if !slices.Contains(known, name) {
			t.Errorf("the test knows no property %s of an alarm", name)
		}
	}
	return a
}

var known = []string{
	"AlarmName", "AlarmDescription", "AlarmActions", "OKActions", "Metrics", "Namespace", "MetricName", "Dimensions", "Statistic", "Period",
	"EvaluationPeriods", "DatapointsToAlarm", "Threshold", "ComparisonOperator", "TreatMissingData", "EvaluationWindow", "WarmUpConfiguration",
}

// decide is one evaluation, of the points in the evaluation range, the oldest first;
// nil is a missing one. It keeps state where missing data says to.
func (a alarm) decide(state string, points []*float64) string {
	// The most recent points that there are count; only as many are made up as lack.
	real := slices.DeleteFunc(slices.Clone(points), func(p *float64) bool { return p == nil })
	real = real[max(0, len(real)-a.evaluate):]
	breaching := 0
	for _, p := range real {
		if a.breaches(*p) {
			breaching++
		}
	}
	lack := a.evaluate - len(real)
	switch {
	case a.missing == "breaching":
		breaching += lack
	case a.missing == "ignore" && lack > 0 && breaching < a.toAlarm && breaching == len(real):
		return state
	}
	if breaching >= a.toAlarm {
		return "ALARM"
	}
	return "OK"
}

// The examples that AWS gives for what missing data does: 5 points, of which 3 count.
// 0 is within the threshold, X beyond it, - missing.
func TestTheEvaluationAgreesWithAWSsExamples(t *testing.T) {
	for _, c := range []struct {
		points                          string
		toAlarm                         int
		ignore, breaching, notBreaching string
	}{
		{"0-X-X", 3, "OK", "OK", "OK"},
		{"0----", 3, "OK", "OK", "OK"},
		{"-----", 3, "kept", "ALARM", "OK"},
		{"0XX-X", 3, "ALARM", "ALARM", "ALARM"},
		{"--X--", 3, "kept", "ALARM", "OK"},
		{"0-X-X", 2, "ALARM", "ALARM", "ALARM"},
		{"00X0X", 2, "ALARM", "ALARM", "ALARM"},
		{"0-X--", 2, "OK", "ALARM", "OK"},
		{"----0", 2, "OK", "ALARM", "OK"},
		{"----X", 2, "kept", "ALARM", "OK"},
	} {
		var points []*float64
		for _, r := range c.points {
			value := map[rune]*float64{'0': new(float64), 'X': new(float64)}[r]
			if r == 'X' {
				*value = 1
			}
			points = append(points, value)
		}
		for missing, want := range map[string]string{"ignore": c.ignore, "breaching": c.breaching, "notBreaching": c.notBreaching} {
			a := alarm{evaluate: 3, toAlarm: c.toAlarm, missing: missing, breaches: func(v float64) bool { return v > 0 }}
			if got := a.decide("kept", points); got != want {
				t.Errorf("%s, %d of 3, %s: %s, AWS says %s", c.points, c.toAlarm, missing, got, want)
			}
		}
	}
}

// sample is a value of a metric, at a minute since the stack was created.
type sample struct {
	at    int
	value float64
}

// point is the statistic of the samples from a minute up to another; nil without any.
func (a alarm) point(samples []sample, from, to int) *float64 {
	first := sort.Search(len(samples), func(i int) bool { return samples[i].at >= from })
	end := sort.Search(len(samples), func(i int) bool { return samples[i].at >= to })
	if first >= end {
		return nil
	}
	value := samples[first].value
	for _, s := range samples[first+1 : end] {
		switch a.stat {
		case "Sum":
			value += s.value
		case "Maximum":
			value = max(value, s.value)
		}
	}
	if a.stat == "SampleCount" {
		value = float64(end - first)
	}
	return &value
}

// history returns the alarm's changes of state until a minute. further is how many
// periods CloudWatch looks back beyond those that count, which it doesn't tell, and
// lag how many minutes a sample needs to be seen.
func (a alarm) history(samples []sample, until, further, lag int) (changes []string) {
	state, step := "INSUFFICIENT_DATA", 1
	if a.wallClock {
		step = 10 // nothing changes in between
	}
	for now := 0; now <= until; now += step {
		if now < a.warmUp {
			continue
		}
		seen := samples[:sort.Search(len(samples), func(i int) bool { return samples[i].at+lag > now })]
		end := now
		if a.wallClock {
			end -= now % a.period
		}
		points := make([]*float64, a.evaluate+further)
		for i := range points {
			to := end - (len(points)-1-i)*a.period
			points[i] = a.point(seen, to-a.period, to)
			switch {
			case points[i] != nil || a.fill == "":
			case a.fill == "REPEAT":
				if i > 0 {
					points[i] = points[i-1]
				}
			default:
				value, _ := strconv.ParseFloat(a.fill, 64)
				points[i] = &value
			}
		}
		if next := a.decide(state, points); next != state {
			state = next
			changes = append(changes, fmt.Sprintf("%s %s", state, clock(now)))
		}
	}
	return changes
}

// clock writes a minute as day and hour.
func clock(minute int) string { return fmt.Sprintf("d%d %02dh", minute/1440, minute/60%24) }

const (
	hour = 60
	day  = 24 * hour
	week = 7 * day
)

// samples are those of each metric.
type samples map[string][]sample

func (s samples) add(metric string, at int, value float64) {
	s[metric] = append(s[metric], sample{at, value})
}

// a run is what it comes to.
type outcome int

const (
	completes outcome = iota
	fails             // so does Lambda's second attempt
	failsOnce         // the second attempt is complete
	stopsEarly
	leavesOld   // complete but for rows that were due 30 hours ago
	leavesFresh // rows that were due half an hour ago
	doesNotKnow // stops early, and can't tell the age of what is left
	late        // complete, 40 minutes after its time
	mixed       // one database leaves old rows, a second ends ten minutes later with none
	leftOut     // no run
)

func (s samples) run(at int, o outcome) {
	incomplete := map[outcome]float64{fails: 1, stopsEarly: 1, doesNotKnow: 1}[o]
	switch o {
	case leftOut:
		return
	case late:
		s.run(at+40, completes)
		return
	case fails, failsOnce:
		s.add("Errors", at, 1)
		s.add("Duration", at+1, 1)
		s.add("Incomplete", at+1, 1)
		if o == failsOnce {
			s.run(at+2, completes)
			return
		}
		s.add("Errors", at+2, 1)
	default:
		s.add("Errors", at, 0)
	}
	s.add("Duration", at+3, 1)
	s.add("Incomplete", at+3, incomplete)
	switch o {
	case leavesOld, mixed:
		s.add("OldestExpiredAge", at+3, 30*3600)
	case leavesFresh, stopsEarly:
		s.add("OldestExpiredAge", at+3, 1800)
	case completes:
		s.add("OldestExpiredAge", at+3, 0)
	}
	if o == mixed {
		s.add("Duration", at+13, 1)
		s.add("OldestExpiredAge", at+13, 0)
	}
}

// during are the outcomes of runs that are not complete.
type during struct {
	from, to int // minutes; to is not part of it
	outcome  outcome
}

// runs are made each so many minutes, at five past the hour first.
func runs(first, every, until int, others ...during) samples {
	s := samples{}
	for at := first; at < until; at += every {
		o := completes
		for _, d := range others {
			if d.from <= at && at < d.to {
				o = d.outcome
			}
		}
		s.run(at, o)
	}
	return s
}

func halfHourly(others ...during) samples { return runs(5, 30, 16*day, others...) }
func nightly(others ...during) samples    { return runs(3*hour+5, day, 16*day, others...) }
func weekly(others ...during) samples     { return runs(3*hour+5, week, 16*day, others...) }

// letters are in the queue from a minute until it is purged. SQS publishes for six
// hours after anything happened to the queue.
func letters(from, purged int) samples {
	s := samples{}
	for at := from; at < purged+6*hour; at++ {
		if at < min(from+6*hour, purged) {
			s.add("ApproximateNumberOfMessagesVisible", at, 2)
		} else if at >= purged {
			s.add("ApproximateNumberOfMessagesVisible", at, 0)
		}
	}
	return s
}

func TestAlarmsFireWhenTheyShould(t *testing.T) {
	stack := load(t)
	eachNight := map[string]string{"StaleHours": "25", "MaxExpiredAge": "90000"}
	eachWeek := map[string]string{"StaleHours": "168", "MaxExpiredAge": "691200"}
	anHour := map[string]string{"MaxExpiredAge": "3600"}
	for _, alarm := range []struct {
		resource  string
		scenarios []scenario
	}{
		{"FailedAlarm", []scenario{
			{"no run yet", nil, samples{}, ""},
			{"half-hourly, all succeed", nil, halfHourly(), "OK d0 00h"},
			{"half-hourly, one fails", nil, halfHourly(during{5*day + 5, 5*day + 6, fails}), "OK d0 00h, ALARM d5 00h, OK d5 00h"},
			{"half-hourly, all fail for a day", nil, halfHourly(during{5 * day, 6 * day, fails}), "OK d0 00h, ALARM d5 00h, OK d6 00h"},
			{"half-hourly, one fails, then none is made for a day", nil, halfHourly(during{5 * day, 5*day + 30, fails}, during{5*day + 30, 6 * day, leftOut}), "OK d0 00h, ALARM d5 00h, OK d6 00h"},
			{"nightly, all succeed", eachNight, nightly(), "OK d0 03h"},
			{"nightly, one fails", eachNight, nightly(during{5 * day, 6 * day, fails}), "OK d0 03h, ALARM d5 03h, OK d6 03h"},
			{"nightly, all fail from then on", eachNight, nightly(during{5 * day, 99 * day, fails}), "OK d0 03h, ALARM d5 03h"},
			{"nightly, one fails and its second attempt succeeds", eachNight, nightly(during{5 * day, 6 * day, failsOnce}), "OK d0 03h, ALARM d5 03h, OK d5 03h"},
			{"weekly, one fails", eachWeek, weekly(during{7 * day, 8 * day, fails}), "OK d0 03h, ALARM d7 03h, OK d14 03h"},
		}},
		{"StaleAlarm", []scenario{
			{"no run ever: quiet on the first day", nil, samples{}, "ALARM d1 00h"},
			{"half-hourly", nil, halfHourly(), "OK d1 00h"},
			{"half-hourly, one is left out", nil, halfHourly(during{5*day + 5, 5*day + 6, leftOut}), "OK d1 00h"},
			{"half-hourly, all fail", nil, halfHourly(during{0, 99 * day, fails}), "OK d1 00h"},
			{"half-hourly, off from then on", nil, halfHourly(during{5*day + 12*hour, 99 * day, leftOut}), "OK d1 00h, ALARM d5 14h"},
			{"half-hourly, off for a night", nil, halfHourly(during{5*day + 20*hour, 6*day + 8*hour, leftOut}), "OK d1 00h, ALARM d5 22h, OK d6 09h"},
			{"nightly", eachNight, nightly(), "OK d1 00h"},
			{"nightly, one is 40 minutes late", eachNight, nightly(during{5 * day, 6 * day, late}), "OK d1 00h"},
			{"nightly, one is left out", eachNight, nightly(during{5 * day, 6 * day, leftOut}), "OK d1 00h, ALARM d5 05h, OK d6 04h"},
			{"nightly, and StaleHours as it comes", nil, nightly(during{2 * day, 99 * day, leftOut}), "ALARM d1 00h, OK d1 04h, ALARM d1 06h"},
			{"weekly", eachWeek, weekly(), "OK d1 00h"},
			{"weekly, one is 40 minutes late", eachWeek, weekly(during{7 * day, 8 * day, late}), "OK d1 00h"},
			{"weekly, one is left out", eachWeek, weekly(during{7 * day, 8 * day, leftOut}), "OK d1 00h, ALARM d7 04h, OK d14 04h"},
			{"weekly, the first one after five days", eachWeek, runs(5*day+3*hour+5, week, 16*day), "ALARM d1 00h, OK d5 04h"},
			{"weekly, the first one after five days, a dry run by hand before", eachWeek, merge(runs(hour, 99*day, day), runs(5*day+3*hour+5, week, 16*day)), "OK d1 00h"},
		}},
		{"BacklogAlarm", []scenario{
			{"no run yet", nil, samples{}, ""},
			{"half-hourly, nothing left", nil, halfHourly(), "OK d0 01h"},
			{"half-hourly, rows of the last half hour left", nil, halfHourly(during{5 * day, 6 * day, leavesFresh}), "OK d0 01h"},
			{"half-hourly, old rows left for six hours", nil, halfHourly(during{5 * day, 5*day + 6*hour, leavesOld}), "OK d0 01h, ALARM d5 01h, OK d5 07h"},
			{"half-hourly, and then a day that does not know", nil, halfHourly(during{5 * day, 5*day + 6*hour, leavesOld}, during{5*day + 6*hour, 6 * day, doesNotKnow}), "OK d0 01h, ALARM d5 01h, OK d6 01h"},
			{"half-hourly, old rows, then none is made for a day", nil, halfHourly(during{5 * day, 5*day + hour, leavesOld}, during{5*day + hour, 6 * day, leftOut}), "OK d0 01h, ALARM d5 01h, OK d6 01h"},
			{"nightly, nothing left", eachNight, nightly(), "OK d0 04h"},
			{"nightly, old rows left once", eachNight, nightly(during{5 * day, 6 * day, leavesOld}), "OK d0 04h, ALARM d5 04h, OK d6 04h"},
			{"nightly, old rows left in one database of two", eachNight, nightly(during{5 * day, 6 * day, mixed}), "OK d0 04h, ALARM d5 04h, OK d6 04h"},
			{"nightly, old rows left from then on", eachNight, nightly(during{5 * day, 99 * day, leavesOld}), "OK d0 04h, ALARM d5 04h"},
			{"weekly, and a limit below what is left", anHour, weekly(during{7 * day, 8 * day, leavesOld}), "OK d0 04h, ALARM d7 04h, OK d14 04h"},
			{"weekly, rows of a day left", eachWeek, weekly(during{7 * day, 8 * day, leavesOld}), "OK d0 04h"},
		}},
		{"IncompleteAlarm", []scenario{
			{"no run yet", nil, samples{}, ""},
			{"half-hourly, all complete", nil, halfHourly(), "OK d0 01h"},
			{"half-hourly, one stops early", nil, halfHourly(during{5*day + 5, 5*day + 6, stopsEarly}), "OK d0 01h"},
			{"half-hourly, five hours of them stop early", nil, halfHourly(during{5 * day, 5*day + 5*hour, stopsEarly}), "OK d0 01h"},
			{"half-hourly, six hours of them stop early", nil, halfHourly(during{5 * day, 5*day + 6*hour, stopsEarly}), "OK d0 01h, ALARM d5 06h, OK d5 07h"},
			{"half-hourly, eight hours, two without a run among them", nil, halfHourly(during{5 * day, 5*day + 8*hour, stopsEarly}, during{5*day + 2*hour, 5*day + 4*hour, leftOut}), "OK d0 01h, ALARM d5 06h, OK d5 09h"},
			{"half-hourly, no-time from the first run on", nil, halfHourly(during{0, 99 * day, doesNotKnow}), "ALARM d0 06h"},
			{"nightly, all complete", eachNight, nightly(), "OK d0 04h"},
			{"nightly, one stops early: told six hours later", eachNight, nightly(during{5 * day, 6 * day, stopsEarly}), "OK d0 04h, ALARM d5 09h, OK d6 04h"},
			{"nightly, all stop early from then on", eachNight, nightly(during{5 * day, 99 * day, stopsEarly}), "OK d0 04h, ALARM d5 09h"},
			{"weekly, one stops early", eachWeek, weekly(during{7 * day, 8 * day, stopsEarly}), "OK d0 04h, ALARM d7 09h, OK d14 04h"},
		}},
		{"DeadLettersAlarm", []scenario{
			{"no letter yet", nil, samples{}, ""},
			{"letters unread for a week, then purged", nil, letters(5*day, 12*day), "ALARM d5 00h, OK d12 00h"},
			{"letters purged within the hour", nil, letters(5*day, 5*day+30), "ALARM d5 00h, OK d5 00h"},
		}},
	} {
		var table strings.Builder
		w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		for _, s := range alarm.scenarios {
			a := alarmOf(t, stack.with(t, s.values)[alarm.resource])
			data := slices.Clone(s.samples[a.metric])
			slices.SortStableFunc(data, func(x, y sample) int { return x.at - y.at })
			fmt.Fprintf(w, "%s\t%s\n", s.name, s.want)
			// It holds whatever of both CloudWatch takes. Lambda's own metrics have the
			// time at which an invocation began, and come when it has ended.
			lags := []int{0, 3}
			if a.namespace == "AWS/Lambda" {
				lags = append(lags, 18)
			}
			for _, further := range []int{0, 2, 5} {
				for _, lag := range lags {
					if got := strings.Join(a.history(data, 16*day, further, lag), ", "); got != s.want {
						t.Errorf("%s: %s, looking %d periods further back, seen after %d minutes:\n got %s\nwant %s", alarm.resource, s.name, further, lag, got, s.want)
					}
				}
			}
		}
		_ = w.Flush()
		t.Logf("%s\n%s", alarm.resource, table.String())
	}
}

// scenario is what happens, with which parameters, and what the alarm says to it.
type scenario struct {
	name    string
	values  map[string]string
	samples samples
	want    string
}

func merge(all ...samples) samples {
	merged := samples{}
	for _, s := range all {
		for metric, values := range s {
			merged[metric] = append(merged[metric], values...)
		}
	}
	return merged
}

// Whoever an alarm calls reads its description first.
func TestEveryAlarmSaysWhatItMeansAndWhatToDo(t *testing.T) {
	r := load(t).with(t, nil)
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if !strings.HasSuffix(name, "Alarm") {
			continue
		}
		text, short := r[name]["AlarmDescription"].(string), strings.TrimPrefix(r[name]["AlarmName"].(string), stackName+"-")
		if !strings.Contains(text, " Do: ") || !strings.Contains(text, "see "+short+" in docs/runbook.md") || len(text) > 1024 {
			t.Errorf("%s: %s", name, text)
		}
	}
}
