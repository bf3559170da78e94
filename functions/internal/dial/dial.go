// Package dial reaches a server by any of the addresses that its host's name stands for.
//
// The drivers of both engines try one address after the other, so that a dead one takes the
// time of all, or log in at the first that takes the connection, whether that says anything
// or not.
package dial

import (
	"context"
	"net"
	"strconv"
	"time"
)

// delay is how long the first address is tried alone: IPv6 that leads nowhere costs no
// more than that.
const delay = 250 * time.Millisecond

// Address is one that [net.Dialer] takes.
type Address struct{ Network, Address string }

// Error is for a name or an address that takes no connection.
type Error struct{ error }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.error }

// LookUp returns the addresses of host. A nil resolver is the system's.
func LookUp(ctx context.Context, resolver *net.Resolver, host string, port uint16) (addresses []Address, err error) {
	hosts, err := resolver.LookupHost(ctx, host)
	if err != nil {
		return nil, &Error{err}
	}
	for _, h := range hosts {
		addresses = append(addresses, Address{"tcp", net.JoinHostPort(h, strconv.Itoa(int(port)))})
	}
	return addresses, nil
}

// Try connects to the addresses within dialing, and calls logIn with each connection, the
// first one first, until one logs in or fails with an error for which it is no use to try
// another address. One that takes the connection and then says nothing has its share of the
// time that ctx leaves.
func Try(ctx, dialing context.Context, addresses []Address, logIn func(ctx context.Context, over net.Conn) error, tryAnother func(error) bool) error {
	dialing, stop := context.WithCancel(dialing)
	defer stop()
	results := connect(dialing, addresses)
	var failure error
	for left := len(addresses); left > 0; left-- {
		c := <-results
		if c.err != nil {
			if failure == nil { // else an address that was reached tells more
				failure = &Error{c.err}
			}
			continue
		}
		err := inShare(ctx, left, c.conn, logIn)
		if err == nil || !tryAnother(err) {
			stop()
			go discard(results, left-1)
			return err
		}
		failure = err
	}
	return failure
}

// connection is one to an address, or why there is none.
type connection struct {
	conn net.Conn
	err  error
}

// connect connects to each of the addresses, one a while after the other. The results
// come in the order in which they are known.
func connect(ctx context.Context, addresses []Address) <-chan connection {
	results := make(chan connection, len(addresses))
	for i, a := range addresses {
		go func() {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(i) * delay):
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, a.Network, a.Address)
			results <- connection{conn, err}
		}()
	}
	return results
}

// inShare logs in within the share of one of so many addresses.
func inShare(ctx context.Context, addresses int, over net.Conn, logIn func(context.Context, net.Conn) error) error {
	if deadline, limited := ctx.Deadline(); limited && addresses > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(addresses))
		defer cancel()
	}
	return logIn(ctx, over)
}

// discard closes the connections that were not needed.
func discard(results <-chan connection, left int) {
	for range left {
		if c := <-results; c.err == nil {
			c.conn.Close() //nolint:errcheck // nothing was sent on it
		}
	}
}
