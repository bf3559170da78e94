package postgres

import (
	"context"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

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
func (c *conn) logIn(ctx context.Context) error {
	dialing, stop := context.WithTimeout(ctx, connectTimeout)
	defer stop()
	addresses, err := c.addresses(dialing)
	if err != nil {
		return &dialError{err}
	}
	results := c.dial(dialing, addresses)
	var failure error
	for left := len(addresses); left > 0; left-- {
		d := <-results
		if d.err != nil {
			if failure == nil { // else an address that was reached tells more
				failure = &dialError{d.err}
			}
			continue
		}
		err := c.logInAt(ctx, d.conn, left)
		if err == nil || !isNotServed(err) {
			stop()
			go discard(results, left-1)
			return err
		}
		failure = err
	}
	return failure
}

// dialError is that of an address that takes no connection.
type dialError struct{ error }

func (d *dialError) Unwrap() error { return d.error }

// addresses returns what the host's name stands for.
func (c *conn) addresses(ctx context.Context) ([]string, error) {
	if network, _ := pgconn.NetworkAddress(c.server.Host, c.server.Port); network != "tcp" {
		return []string{c.server.Host}, nil
	}
	return c.server.resolver.LookupHost(ctx, c.server.Host)
}

// dial connects to each of the addresses, one a while after the other. The results
// come in the order in which they are known.
func (c *conn) dial(ctx context.Context, addresses []string) <-chan dialed {
	results := make(chan dialed, len(addresses))
	for i, host := range addresses {
		network, address := pgconn.NetworkAddress(host, c.server.Port)
		go func() {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(i) * addressDelay):
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			results <- dialed{conn, err}
		}()
	}
	return results
}

// logInAt logs in over a connection that is there, within a share of the time.
func (c *conn) logInAt(ctx context.Context, over net.Conn, share int) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	if deadline, limited := ctx.Deadline(); limited && share > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(share))
		defer cancel()
	}
	address := over.RemoteAddr()
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{address.String()}, nil }
	first := over
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if conn := first; conn != nil {
			first = nil
			return conn, nil
		}
		return (&net.Dialer{}).DialContext(ctx, address.Network(), address.String()) // to cancel a statement
	}
	pg, err := pgx.ConnectConfig(ctx, config)
	if err == nil {
		c.pg = pg
	}
	return err
}

// discard closes the connections that were not needed.
func discard(results <-chan dialed, left int) {
	for range left {
		if d := <-results; d.err == nil {
			d.conn.Close() //nolint:errcheck // nothing was sent on it
		}
	}
}
