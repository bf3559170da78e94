package sqlserver

import (
	"cmp"
	"context"
	"database/sql"
	"net"
	"strconv"
	"time"

	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/msdsn"
)

// The driver tries the addresses of a name one after the other, so that a dead one takes
// the time of all, or with MultiSubnetFailover all at once, and either way it logs in at
// the first that takes the connection, whether that says anything or not.

// addressDelay is how long the first address of a host is tried alone: IPv6 that leads
// nowhere costs no more than that.
const addressDelay = 250 * time.Millisecond

// A dialed address.
type dialed struct {
	conn net.Conn
	err  error
}

// logIn tries all addresses of the host, those first that take the connection, until
// one logs us in or says why it never will. Each has its turn: one that takes the
// connection and then says nothing has its share of the time that is left.
func (c *conn) logIn(ctx context.Context, config msdsn.Config) error {
	dialing, stop := context.WithCancel(ctx)
	defer stop()
	addresses, err := c.server.resolver.LookupHost(dialing, c.server.Host)
	if err != nil {
		return err
	}
	results := c.dial(dialing, addresses)
	var failure error
	for left := len(addresses); left > 0; left-- {
		d := <-results
		if d.err != nil {
			if failure == nil { // else an address that was reached tells more
				failure = d.err
			}
			continue
		}
		err := c.logInAt(ctx, config, d.conn, left)
		if err == nil || !isNotServed(err) {
			stop()
			go discard(results, left-1)
			return err
		}
		failure = err
	}
	return failure
}

// dial connects to each of the addresses, one a while after the other. The results
// come in the order in which they are known.
func (c *conn) dial(ctx context.Context, addresses []string) <-chan dialed {
	results := make(chan dialed, len(addresses))
	for i, host := range addresses {
		address := net.JoinHostPort(host, strconv.Itoa(int(c.server.Port)))
		go func() {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(i) * addressDelay):
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			results <- dialed{conn, err}
		}()
	}
	return results
}

// logInAt logs in over a connection that is there, within a share of the time.
func (c *conn) logInAt(ctx context.Context, config msdsn.Config, over net.Conn, share int) error {
	if deadline, limited := ctx.Deadline(); limited && share > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(share))
		defer cancel()
	}
	connector := mssql.NewConnectorConfig(config)
	connector.Dialer = &dialer{conn: c, over: over}
	pool := sql.OpenDB(connector)
	session, err := pool.Conn(ctx)
	if err != nil {
		pool.Close() //nolint:errcheck // it has no session
		over.Close() //nolint:errcheck // which the driver may not have asked for
		return err
	}
	c.pool, c.session = pool, session
	return nil
}

// discard closes the connections that were not needed.
func discard(results <-chan dialed, left int) {
	for range left {
		if d := <-results; d.err == nil {
			d.conn.Close() //nolint:errcheck // nothing was sent on it
		}
	}
}

// dialer hands the driver the wire. The driver does not look at the context during the
// handshakes, so the wire itself gives up in time.
type dialer struct {
	*conn
	over  net.Conn
	asked string // the address that the driver knows the wire by; "" before it asks
}

// DialContext implements [mssql.Dialer]. A server may send the driver on to another one.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	wire := d.over
	if d.asked != "" {
		if address == d.asked {
			address = d.over.RemoteAddr().String()
		}
		var err error
		if wire, err = (&net.Dialer{}).DialContext(ctx, network, address); err != nil {
			return nil, err
		}
	}
	d.asked = cmp.Or(d.asked, address)
	deadline, _ := ctx.Deadline()
	d.wire = wire
	return wire, wire.SetDeadline(deadline)
}

// HostName implements [mssql.HostDialer]. It makes the driver leave the look-up of
// the name to DialContext.
func (d *dialer) HostName() string { return d.server.Host }
