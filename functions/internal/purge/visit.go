package purge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// visit is the work in one database: its tables have their turns one after the other, over
// one connection and each with its part of the time. A table that fails, is locked or is
// not to be read by the login does not stop the others.
type visit struct {
	run      *run
	database Database
	turns    []*turn // one for each table
	pending  []*turn // those that want a turn
	conn     Conn    // that the last turn left open; nil is none
	wanting  int     // tables that have not had their turn in this round
	surveyed bool    // its other tables were looked at
	disconnection
}

func newVisit(r *run, d Database) *visit {
	v := &visit{run: r, database: d}
	for _, table := range r.target.Tables {
		v.turns = append(v.turns, newTurn(v, table))
	}
	v.pending = slices.Clone(v.turns)
	return v
}

// serve gives each table a turn that wants one, in another order each time: a cap that one
// table uses up is not always used up by the same. again tells that one of them wants
// another turn.
func (v *visit) serve(outer, work context.Context) (again bool) {
	if v.database.Closed != "" {
		v.turns[0].closed()
		return false
	}
	if err := v.run.slots.Acquire(outer, 1); err != nil {
		for _, t := range v.turns {
			if t.result.Status == "" {
				t.result.end(Partial, Canceled)
			}
		}
		return false
	}
	defer v.run.slots.Release(1)
	defer v.close(outer)
	wanting := v.pending
	rand.Shuffle(len(wanting), func(i, j int) { wanting[i], wanting[j] = wanting[j], wanting[i] })
	v.pending = nil
	for i, t := range wanting {
		v.wanting = len(wanting) - i
		more := t.serve(outer, work)
		if more {
			v.pending = append(v.pending, t)
		}
		if others := wanting[i+1:]; !t.result.reached { // nor are they, now
			if more {
				v.pending = append(v.pending, others...)
			} else {
				giveUp(others, t.result)
			}
			break
		}
	}
	return len(v.pending) > 0
}

// giveUp ends the turns of tables as that of another one of their database ended.
func giveUp(turns []*turn, as DatabaseResult) {
	for _, t := range turns {
		t.result.end(as.Status, as.StopReason)
		t.result.Error = as.Error
	}
}

// take returns the connection that the last turn left open, turned to another table; nil is
// none.
func (v *visit) take(ctx context.Context, table Table) (Conn, error) {
	conn := v.conn
	if conn == nil {
		return nil, nil
	}
	v.conn = nil
	err := conn.Switch(ctx, table)
	if errors.Is(err, ErrLost) {
		v.drop(conn)
		v.disconnectedAt = time.Now() // the server may not have given its session up yet
		return nil, nil
	}
	if err != nil {
		v.conn = conn
		return nil, err
	}
	return conn, nil
}

// close ends what is left open.
func (v *visit) close(ctx context.Context) {
	if v.conn != nil {
		recoverPanic(ctx, v.run.target.Log, func() error { v.drop(v.conn); return nil }) //nolint:errcheck // logged; every batch is committed
		v.conn = nil
	}
}

func (v *visit) drop(conn Conn) {
	v.run.slots.leave(1)
	conn.Close()
}

// optional tells whether it is no fault that one of its tables is not there.
func (v *visit) optional() bool { return v.database.Matched || len(v.turns) > 1 }

// wasOpen tells whether any of its tables was.
func (v *visit) wasOpen() bool {
	return slices.ContainsFunc(v.turns, func(t *turn) bool { return t.result.Cutoff != nil })
}

// batches returns how many were committed, in all its tables.
func (v *visit) batches() (all int) {
	for _, t := range v.turns {
		all += t.backlog.batches
	}
	return all
}

// isOwnStaleSession tells whether the run that holds the database may be a session of
// ours that the server has not given up yet: one that was lost, or cut while it opened.
func (v *visit) isOwnStaleSession() bool {
	return !v.disconnectedAt.IsZero() && (v.wasOpen() || time.Since(v.disconnectedAt) < maxBackoff)
}

// share returns how long the next turn may take; 0 is as long as there is.
func (v *visit) share(work context.Context) time.Duration {
	share := v.run.schedule.share(work, v.run.slots.atOnce())
	deadline, limited := work.Deadline()
	switch {
	case v.wanting < 2:
		return share
	case share > 0:
		return share / time.Duration(v.wanting)
	case limited:
		return time.Until(deadline) / time.Duration(v.wanting)
	default:
		return 0
	}
}

// result returns what happened in the database: of one table that is all, of several the
// sums. Of a table that is not there nothing is told, unless none is.
func (v *visit) result() DatabaseResult {
	var there []DatabaseResult
	for _, t := range v.turns {
		if t.result.Status != Skipped && t.result.Status != "" {
			t.result.Table = t.table.Name
			there = append(there, t.result)
		}
	}
	first := v.turns[0].result
	switch {
	case len(v.turns) == 1:
		first.Table = ""
		return first
	case len(there) == 0 && !v.database.Matched && v.database.Closed == "":
		first.Status, first.StopReason, first.Findings = Failed, Errored, v.run.findings()
		first.Error = fmt.Sprintf("the database has none of the tables in TABLES: %s", strings.Join(v.names(), ", "))
		first.Findings = append(first.Findings, NoTable.At(LevelError, first.Error))
		return first
	case len(there) == 0:
		return first
	}
	sum := DatabaseResult{Database: first.Database, Engine: first.Engine, Server: first.Server, Tables: there, Findings: v.run.findings()}
	sum.ExpiredRows = new(int64)
	for _, table := range there {
		sum.add(table, v.run.target.Findings)
	}
	sum.Error = causes(there)
	slices.SortStableFunc(sum.Findings, bySeverity)
	return sum
}

// causes returns what tables failed for, each cause once, and one of all tables without
// their names.
func causes(tables []DatabaseResult) string {
	var texts []string
	of := map[string][]string{}
	for _, t := range tables {
		if t.Error == "" {
			continue
		}
		if of[t.Error] == nil {
			texts = append(texts, t.Error)
		}
		of[t.Error] = append(of[t.Error], t.Table)
	}
	for i, text := range texts {
		if len(of[text]) < len(tables) || len(tables) == 1 {
			texts[i] = strings.Join(of[text], ", ") + ": " + text
		}
	}
	return strings.Join(texts, "; ")
}

func (v *visit) names() (names []string) {
	for _, t := range v.turns {
		names = append(names, t.table.Name)
	}
	return names
}

// badness orders what tables came to: the worst is the database's.
var badness = map[Status]int{"": 0, Complete: 1, Partial: 2, Failed: 3}

// ofDatabase are the kinds of findings about the connection, the server or the database,
// which are told once for all tables.
var ofDatabase = []string{
	Connected.Code, Clock.Code, ClockSkew.Code, TLS.Code, NoTLS.Code, CertificateEnds.Code, Version.Code, TimeZone.Code, SessionSettings.Code,
	RCSI.Code, RCSIOff.Code, ReaderEndpoint.Code, ReadOnly.Code, ReadOnlyDatabase.Code, SessionsUnseen.Code,
	UnwatchedTable.Code,
}

// add counts one of its tables in. Of its findings those of all databases are there.
func (d *DatabaseResult) add(table DatabaseResult, all []Finding) {
	if badness[table.Status] > badness[d.Status] {
		d.Status, d.StopReason = table.Status, table.StopReason
	}
	d.DeletedRows += table.DeletedRows
	d.Batches += table.Batches
	d.DurationMs += table.DurationMs
	d.ThrottledMs += table.ThrottledMs
	if d.ExpiredRows == nil || table.ExpiredRows == nil {
		d.ExpiredRows = nil
	} else {
		*d.ExpiredRows += *table.ExpiredRows
	}
	d.Local = d.Local || table.Local && table.OldestExpiration != nil
	d.Cutoff, d.OldestExpiration = earlier(d.Cutoff, table.Cutoff), earlier(d.OldestExpiration, table.OldestExpiration)
	for _, f := range table.Findings {
		switch {
		case slices.Contains(all, f):
		case slices.Contains(ofDatabase, f.Code):
			d.find(f)
		default:
			f.Message = table.Table + ": " + f.Message
			d.Findings = append(d.Findings, f)
		}
	}
}

// earlier returns the earlier of two instants of which nil is none.
func earlier(a, b *Instant) *Instant {
	if a == nil || b != nil && b.Before(a.Time) {
		return b
	}
	return a
}

// ofTable are the kinds of faults that a table has, and not its whole database.
var ofTable = []string{NoTable.Code, WrongTable.Code, NoSelectRight.Code, NoDeleteRight.Code, RowSecurity.Code, NoReplicaIdentity.Code}

// isOfTable tells whether err is a fault of a table alone.
func isOfTable(err error) bool {
	unfit, ok := errors.AsType[NotPurgeable](err)
	return ok && slices.Contains(ofTable, unfit.Kind.Code)
}
