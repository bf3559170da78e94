package purge

import (
	"cmp"
	"context"
)

// Acknowledge finds out over conn what became of the batches whose acknowledgement
// was lost.
func (b *backlog) Acknowledge(ctx context.Context, conn Conn) error {
	for ; len(b.unacknowledged) > 0; b.unacknowledged = b.unacknowledged[1:] {
		c := b.unacknowledged[0]
		committed, err := c.wasCommitted(ctx, conn)
		switch {
		case err != nil:
			return err
		case committed:
			b.settle(c)
		default:
			b.quota.Release(c.reserved, 0)
		}
	}
	return nil
}

// wasCommitted tells whether b was: the server says so or, where it can't be asked, the
// rows are gone, whoever deleted them.
func (b *batch) wasCommitted(ctx context.Context, conn Conn) (committed bool, err error) {
	witness, ok := conn.(Witness)
	err = retryWhileLocked(ctx, func() (err error) {
		if ok && b.transaction != 0 {
			committed, err = witness.Committed(ctx, b.transaction)
			return err
		}
		_, found, err := conn.Oldest(ctx, b.Window, Trail{})
		committed = found == nil
		return err
	})
	return committed, err
}

// settle counts a batch that was committed without an acknowledgement. Where the server
// had not said how many rows went, they are as many as were cut; of a number that nobody
// knows none is counted, and the quota has them all.
func (b *backlog) settle(c *batch) {
	rows, went := c.deleted, c.deleted
	if c.deleted < 0 {
		rows, went = c.Rows, cmp.Or(c.Rows, c.reserved)
	}
	if c.deleted < 0 || c.transaction == 0 {
		b.uncertain += c.reserved
	}
	b.quota.Release(c.reserved, went)
	b.count(rows)
}

// Uncertain returns by how many rows the count may be off.
func (b *backlog) Uncertain() int64 {
	rows := b.uncertain
	for _, c := range b.unacknowledged {
		rows += c.reserved
	}
	return rows
}
