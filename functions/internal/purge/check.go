package purge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// countPatience bounds how long a check counts expired rows.
	countPatience = 5 * time.Second
	// backlogAge is how long ago a row must have expired to tell that nobody
	// deletes: cleaners come every half an hour.
	backlogAge = 6 * time.Hour
	// rehearsed is how many rows a check tries to delete at most at once, and
	// rehearsals how many in all.
	rehearsed  = 1000
	rehearsals = 5000
	// rehearsalTarget is the time that one try aims at, as it holds locks, and
	// rehearsalPatience bounds each and all of them.
	rehearsalTarget   = 50 * time.Millisecond
	rehearsalPatience = 5 * time.Second
)

// check examines the database, deletes nothing, and fails where a purge would.
func (t *turn) check(ctx context.Context, facts Facts) error {
	var faults []string
	find := func(f Finding) {
		if t.result.find(f); f.Level == LevelError {
			faults = append(faults, f.Code+": "+f.Message)
		}
	}
	find(Connected.Found(fmt.Sprintf("connected, logged in and examined in %s ms", Grouped(t.opening.Milliseconds()))))
	find(clock(facts.Now))
	var findings []Finding
	err := t.unlocked(ctx, func() (err error) {
		findings, err = t.conn.Check(ctx)
		return err
	})
	for _, f := range findings {
		find(f)
	}
	switch unfit, ok := errors.AsType[NotPurgeable](err); {
	case ok && (faults != nil || !t.visit.database.Matched):
		find(unfit.Kind.At(LevelError, unfit.Message))
	case err != nil:
		return err
	}
	t.survey(ctx, find)
	expired, err := t.checkExpired(ctx)
	if err != nil {
		return err
	}
	if expired != nil && faults == nil && slices.ContainsFunc(findings, inTheWay) {
		refused, err := t.rehearse(ctx, expired)
		if err != nil {
			return err
		}
		for _, f := range refused {
			find(f)
		}
	}
	if faults != nil {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}

const (
	// manyRows is from how many rows on a table that nobody cleans is worth a warning.
	manyRows = 100_000
	// surveyPatience bounds how long a check looks for the oldest row of such a table.
	surveyPatience = 2 * time.Second
)

// survey finds the tables that could be purged and are not asked for. What it can't see is
// no fault.
func (t *turn) survey(ctx context.Context, find func(Finding)) {
	conn, ok := t.conn.(Surveyor)
	if !ok || t.visit.surveyed {
		return
	}
	t.visit.surveyed = true
	var unwatched []string
	var names []string
	level := LevelInfo
	for _, table := range Tables() {
		if names = append(names, table.Name); slices.ContainsFunc(t.run.target.Tables, func(asked Table) bool { return asked.Name == table.Name }) {
			continue
		}
		brief, cancel := context.WithTimeout(ctx, surveyPatience)
		rows, oldest, there, err := conn.Survey(brief, table)
		cancel()
		if err != nil {
			t.log.WarnContext(ctx, "table not surveyed to the end", "error", err.Error())
		}
		if !there {
			names = names[:len(names)-1]
			continue
		}
		if rows >= manyRows {
			level = LevelWarning
		}
		text := fmt.Sprintf("%s has about %s rows", table.Name, Grouped(rows))
		if rows == 0 { // by statistics that may not know the latest
			text = table.Name + " has few rows"
		}
		if oldest != nil {
			text += fmt.Sprintf(", the oldest of %s", oldest.Format(time.DateOnly))
		} else if rows > 0 {
			text += ", of unknown age"
		}
		unwatched = append(unwatched, text)
	}
	if unwatched != nil {
		find(UnwatchedTable.At(level, fmt.Sprintf("%s; not in TABLES, so not purged here; to purge it too, set TABLES to %s", strings.Join(unwatched, ", "), strings.Join(names, ","))))
	}
}

// inTheWay tells whether a finding is about something that may keep rows, or that the
// login could not see.
func inTheWay(f Finding) bool {
	return slices.Contains([]string{DeleteTrigger.Code, DeleteRule.Code, Referenced.Code, DeleteBurden.Code, DefinitionsUnseen.Code}, f.Code)
}

// rehearse finds out whether the first rows would go, where the connection can try it. It
// begins with one, as it does not know how long they take.
func (t *turn) rehearse(ctx context.Context, w Window) ([]Finding, error) {
	conn, ok := t.conn.(Rehearser)
	if !ok {
		return nil, nil
	}
	size := &sizer{most: rehearsed, target: rehearsalTarget, size: 1, learning: true}
	var took time.Duration
	for tried := int64(0); w != nil && tried < rehearsals && took < rehearsalPatience; {
		cut, rest, err := t.conn.Cut(ctx, w, size.Next(), 1)
		if err != nil {
			return nil, err
		}
		brief, cancel := context.WithTimeout(ctx, rehearsalPatience)
		began := time.Now()
		rows, gone, err := conn.Rehearse(brief, cut[0])
		cancel()
		took += time.Since(began)
		switch {
		case errors.Is(err, ErrTimeout) && ctx.Err() == nil: // this one row
			took = rehearsalPatience
		case err != nil || gone < rows:
			return t.resisted(ctx, rows, gone, err)
		}
		size.Observe(size.Next(), gone, time.Since(began), err)
		tried += rows
		w = rest
	}
	if took >= rehearsalPatience && size.Next() < slowRows {
		return []Finding{t.slowRows(ctx)}, nil
	}
	return nil, nil
}

// resisted tells what came of a try to delete that failed, or left rows.
func (t *turn) resisted(ctx context.Context, rows, gone int64, err error) ([]Finding, error) {
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return []Finding{NotRehearsed.Found(err.Error())}, nil
	case errors.Is(err, ErrRefused):
		return []Finding{RefusedRows.Found("a delete that was tried and undone says: " + err.Error() + t.whatActs(ctx))}, nil
	case errors.Is(err, ErrLocked): // a purge would wait
		return nil, nil
	case err != nil:
		return nil, err
	default: // or others were faster, which another check shows
		return []Finding{KeptRows.Found(fmt.Sprintf("a delete that was tried and undone removed %s rows of %s: %s%s", Grouped(gone), Grouped(rows), errKept, t.whatActs(ctx)))}, nil
	}
}

// checkExpired finds how much there is to do, and returns what there is to delete; nil
// is nothing.
func (t *turn) checkExpired(ctx context.Context) (Window, error) {
	oldest, found, err := t.oldest(ctx, t.expired)
	if err != nil {
		return nil, err
	}
	if found == nil {
		t.result.looked(nil)
		t.result.find(ExpiredRows.Found("no row has expired"))
		return nil, nil
	}
	t.result.OldestExpiration = instant(oldest)
	t.result.looked(t.result.OldestExpiration)
	counting, cancel := context.WithTimeout(ctx, countPatience)
	defer cancel()
	many := fmt.Sprintf("more rows than could be counted in %s", countPatience)
	switch rows, err := t.count(counting, found); {
	case err == nil:
		many = Grouped(rows) + " rows"
	case !errors.Is(err, ErrTimeout) && (counting.Err() == nil || ctx.Err() != nil):
		return nil, err
	}
	text := fmt.Sprintf("%s have expired, the oldest at %s", many, t.result.column(oldest))
	if *t.result.OldestExpiredAge() > backlogAge {
		t.result.find(Backlog.Found(text + ": run purges until the status is complete"))
	} else {
		t.result.find(ExpiredRows.Found(text))
	}
	return found, nil
}

// clock tells whether the database's clock is right.
func clock(database time.Time) Finding {
	clocks, ok := skew(database)
	if ok {
		return Clock.Found(clocks)
	}
	return ClockSkew.Found(clocks)
}

// skew compares the database's clock with ours; ok is close enough to delete by.
func skew(database time.Time) (text string, ok bool) {
	now := time.Now()
	text = fmt.Sprintf("the database says %s, this function says %s", instant(database), instant(now.Truncate(time.Millisecond)))
	if database.Sub(now).Abs() > MaxClockSkew {
		return fmt.Sprintf("%s; more than %s apart, so nothing is deleted", text, MaxClockSkew), false
	}
	return text, true
}

// Cleaners returns the finding on who else deletes from a table: jobs of the server's
// schedulers, and the statements that end them. unseen, where it is not "", says why there
// may be more, and nowhere where else to look.
func Cleaners(t Table, jobs, ends []string, unseen, nowhere string) Finding {
	text, kind := nowhere, NoOtherCleaner
	switch {
	case jobs != nil:
		kind, text = OtherCleaner, fmt.Sprintf("rows are also deleted by %s. To end that: %s", strings.Join(jobs, ", "), strings.Join(ends, " "))
	case unseen != "":
		kind, text = OtherCleanerUnseen, unseen
	}
	if t.Cleaner != "" && jobs == nil {
		text += fmt.Sprintf("; whether %s deletes too shows in no database", t.Cleaner)
	}
	return kind.Found(text)
}
