package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"edfi-token-purge/functions/internal/purge"
)

const (
	// How often the progress is shown: on a terminal, where it is one line that
	// is written over, and elsewhere, where it is lines like all others.
	redraw      = 100 * time.Millisecond
	logInterval = 5 * time.Second
	// countPatience is how long the rows of a database may take to be counted,
	// which only the bar needs.
	countPatience = 3 * time.Second
	// rateAfter is how long rows must have gone before their rate says anything.
	rateAfter = 500 * time.Millisecond
)

// progress shows how far a run is.
type progress struct {
	out      *os.File
	terminal bool
	done     chan struct{} // closed by stop
	idle     sync.WaitGroup

	mu        sync.Mutex
	shown     int // how long the line is that stands on the terminal
	action    purge.Action
	maxRows   int64 // 0 is no cap
	databases int
	ended     int
	counted   map[string]bool // or not to be counted any more
	uncounted bool            // of one database the rows are not known
	total     int64           // rows to delete in the databases counted so far
	deleted   int64
	began     time.Time         // when deleting did
	waiting   map[string]string // what databases wait for
}

func newProgress(out *os.File) *progress {
	terminal := term.IsTerminal(int(out.Fd())) && !dumb()
	return &progress{out: out, terminal: terminal, done: make(chan struct{}), counted: map[string]bool{}, waiting: map[string]string{}}
}

// dumb tells whether the terminal can only write one line after the other.
func dumb() bool { return os.Getenv("TERM") == "dumb" }

// hasColours tells whether f is a terminal that shows colours, and may.
func hasColours(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && !dumb() && enableColours(f)
}

// sizeOf returns the size of a terminal, and 0 for anything else.
func sizeOf(f *os.File) (columns, rows int) {
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return columns, rows
}

// start begins to show. The end of ctx is an interruption.
func (p *progress) start(ctx context.Context) {
	interval := logInterval
	if p.terminal {
		interval = redraw
	}
	p.idle.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		interrupted := ctx.Done()
		for {
			select {
			case <-p.done:
				return
			case <-interrupted:
				interrupted = nil
				p.note("stopping after the batches in hand; again to stop at once")
			case <-tick.C:
				p.show()
			}
		}
	})
}

// stop ends what start began and takes the line off the terminal.
func (p *progress) stop() {
	close(p.done)
	p.idle.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

// Write implements io.Writer for whole lines of others, such as the log's.
func (p *progress) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	return p.out.Write(text)
}

func (p *progress) note(text string) { fmt.Fprintln(p, "purge-tokens:", text) }

// clear takes the line off with blanks: a sequence that does it is not known everywhere.
func (p *progress) clear() {
	if p.shown > 0 {
		fmt.Fprintf(p.out, "\r%*s\r", p.shown, "")
		p.shown = 0
	}
}

func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.databases == 0 { // not begun yet
		return
	}
	if !p.terminal {
		fmt.Fprintln(p.out, p.line(0))
		return
	}
	columns, _ := sizeOf(p.out)
	if columns < 2 { // it doesn't say
		columns = 80
	}
	line := p.line(columns - 1)
	fmt.Fprintf(p.out, "\r%-*s", min(p.shown, columns-1), line) // over the line that stands there
	p.shown = len([]rune(line))
}

// line says how far the run is, in at most so many columns; 0 is without a bound
// and without a bar.
func (p *progress) line(columns int) string {
	total := p.total
	if p.maxRows > 0 {
		total = min(total, p.maxRows)
	}
	known := total > 0 && !p.uncounted && len(p.counted) == p.databases && !p.began.IsZero()
	part, why := p.part(known, total), purge.Printable(p.waitsFor())
	text := joined(part, p.pace(known, total), why)
	if columns <= 0 {
		return "purge-tokens: " + text
	}
	switch {
	case why == "" && known:
		text = bar(min(1, float64(p.deleted)/float64(total)), text, columns)
	case why != "" && len([]rune(text)) > columns: // the reason is what matters
		text = joined(part, why)
	}
	return string([]rune(text)[:min(len([]rune(text)), columns)])
}

// pace says how fast rows go, and how long that will take.
func (p *progress) pace(known bool, total int64) string {
	elapsed := time.Since(p.began)
	if p.deleted == 0 || elapsed <= rateAfter {
		return ""
	}
	rate, left := float64(p.deleted)/elapsed.Seconds(), ""
	// A run that waits has a rate that says nothing of what is to come.
	if seconds := float64(total-p.deleted) / rate; known && seconds >= 0 && len(p.waiting) == 0 {
		left = (time.Duration(seconds+1) * time.Second).String() + " left"
	}
	return joined(perSecond(rate), left)
}

// joined puts what there is of texts side by side.
func joined(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(text string) bool { return text == "" }), "  ")
}

// waitsFor says what the run waits for, if it does.
func (p *progress) waitsFor() string {
	if len(p.waiting) == 0 {
		return ""
	}
	database := slices.Min(slices.Collect(maps.Keys(p.waiting)))
	switch why := p.waiting[database]; {
	case p.databases == 1:
		return "waits: " + why
	case len(p.waiting) == 1:
		return database + " waits: " + why
	default:
		return fmt.Sprintf("%s databases wait: %s", purge.Grouped(len(p.waiting)), why)
	}
}

// waits takes in what a database waits for; "" is nothing any more.
func (p *progress) waits(database, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if why == "" {
		delete(p.waiting, database)
	} else {
		p.waiting[database] = why
	}
}

// part says which part of the run is done.
func (p *progress) part(known bool, total int64) string {
	switch {
	case known:
		return purge.Grouped(p.deleted) + " of " + rows(total)
	case p.action == purge.Purge && p.databases == 1:
		return rows(p.deleted)
	case p.action == purge.Purge:
		return fmt.Sprintf("%s  %s", outOf(p.ended, p.databases), rows(p.deleted))
	case p.databases == 1:
		return string(p.action)
	default:
		return fmt.Sprintf("%s: %s", p.action, outOf(p.ended, p.databases))
	}
}

// bar puts a bar and a percentage before text, where there is room.
func bar(part float64, text string, columns int) string {
	text = fmt.Sprintf("%3.0f%%  %s", part*100, text)
	if width := min(20, columns-len(text)-len("[] ")); width > 2 {
		full := int(part * float64(width))
		text = "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "] " + text
	}
	return text
}

func perSecond(rate float64) string { return purge.Grouped(int64(rate)) + "/s" }

// finished counts a database that is done.
func (p *progress) finished(database string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended++
	p.counted[database] = true
}

// over returns an engine that opens what the target's opens, and has p count what there is
// to delete before that. Its connections are closed again, so that none is used that
// holds a lock, and there is never one more.
func (p *progress) over(target purge.Target, policy purge.Policy) purge.Engine {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.action, p.maxRows, p.databases = policy.Action, policy.MaxRows, len(target.Databases)
	return watched{target.Engine, p, target.Tables, policy.Grace}
}

type watched struct {
	purge.Engine
	progress *progress
	tables   []purge.Table
	grace    time.Duration
}

// Open implements [purge.Engine].
func (w watched) Open(ctx context.Context, database string, table purge.Table, lock bool) (purge.Conn, error) {
	if lock && w.progress.wants(database) {
		conn, err := w.Engine.Open(ctx, database, table, false)
		if err != nil {
			w.progress.missed(database)
			return nil, err
		}
		w.progress.expect(w.count(ctx, conn, table))
		conn.Close()
	}
	return w.Engine.Open(ctx, database, table, lock)
}

// count returns how many rows there are to delete in all tables of the database, of which
// one is open; below 0 where that takes too long.
func (w watched) count(ctx context.Context, conn purge.Conn, open purge.Table) (all int64) {
	ctx, cancel := context.WithTimeout(ctx, countPatience)
	defer cancel()
	others := slices.DeleteFunc(slices.Clone(w.tables), func(t purge.Table) bool { return t.Name == open.Name })
	for _, table := range append([]purge.Table{open}, others...) {
		if table.Name != open.Name {
			err := conn.Switch(ctx, table)
			if unfit, ok := errors.AsType[purge.NotPurgeable](err); ok && unfit.Kind.Code == purge.NoTable.Code {
				continue
			}
			if err != nil {
				return -1
			}
		}
		rows, err := conn.Count(ctx, conn.Expired(time.Time{}, table.Cutoff(conn.Facts().Clock, w.grace)))
		if err != nil {
			return -1
		}
		all += rows
	}
	return all
}

// wants tells, once for each database, whether its rows are to be counted.
func (p *progress) wants(database string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.terminal || p.action != purge.Purge || p.counted[database] {
		return false
	}
	p.counted[database] = true
	return true
}

// missed says that the rows of a database could not be counted: its next table may open.
func (p *progress) missed(database string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.counted, database)
}

// expect adds the rows of one more database; below 0 they are not known.
func (p *progress) expect(rows int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.uncounted = p.uncounted || rows < 0
	p.total += max(0, rows)
	if p.began.IsZero() {
		p.began = time.Now()
	}
}

// deletedRows adds the rows of a committed batch.
func (p *progress) deletedRows(_ string, rows int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = time.Now()
	}
	p.deleted += rows
}
