package purge

import (
	"cmp"
	"context"
)

// unacknowledged is what is known of batches whose acknowledgement was lost.
type unacknowledged struct {
	asking    []*batch // what became of them is not known yet
	uncertain int64    // rows of those that were counted without a proof
}

// Acknowledge finds out over conn what became of the batches whose acknowledgement
// was lost.
func (b *backlog) Acknowledge(ctx context.Context, conn Conn) error {
	for ; len(b.asking) > 0; b.asking = b.asking[1:] {
		c := b.asking[0]
		committed, proved, err := c.wasCommitted(ctx, conn)
		if err != nil {
			return err
		}
		b.settle(c, committed, proved)
	}
	return nil
}

// wasCommitted tells whether b was: the server says so, which is a proof, or where it
// can't be asked, the rows are gone, whoever deleted them. Rows that are there are no
// proof either: they may have come since, or the server may be about to commit.
func (b *batch) wasCommitted(ctx context.Context, conn Conn) (committed, proved bool, err error) {
	witness, ok := conn.(Witness)
	proved = ok && b.gone.Transaction != 0
	err = retryWhileLocked(ctx, func() (err error) {
		if proved {
			committed, err = witness.Committed(ctx, b.gone.Transaction)
			return err
		}
		_, found, err := conn.Oldest(ctx, b.Window, Trail{})
		committed = found == nil
		return err
	})
	return committed, proved, err
}

// settle counts a batch without an acknowledgement where it was committed. Where the
// server had not said how many rows went, they are as many as were cut; of a number that
// nobody knows none is counted. The quota has all that may have gone.
func (b *backlog) settle(c *batch, committed, proved bool) {
	if proved && !committed {
		b.quota.Release(0, -c.reserved)
		return
	}
	rows := c.gone.Rows
	if rows < 0 {
		rows = c.Rows
	}
	if !proved || c.gone.Rows < 0 {
		b.uncertain += c.mayBe()
	}
	b.quota.Release(0, cmp.Or(rows, c.mayBe())-c.reserved)
	if committed {
		b.count(rows)
	}
}

// mayBe returns how many rows went at most, if any did.
func (b *batch) mayBe() int64 {
	if b.gone.Rows >= 0 {
		return b.gone.Rows
	}
	return b.reserved
}

// Uncertain returns by how many rows the count may be off.
func (b *backlog) Uncertain() int64 {
	rows := b.uncertain
	for _, c := range b.asking {
		rows += c.mayBe()
	}
	return rows
}
