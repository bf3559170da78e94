package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// explain says what doing failed at, and for the errors that an operator can
// mend, how. It leaves out what may quote a row or the login: a message's
// detail and context, and the user's name.
func (c *conn) explain(doing string, err error) error {
	var refused *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, purge.ErrTimeout):
		return err
	case errors.As(err, &refused):
		return c.explainRefusal(doing, refused)
	}
	// What a driver wraps around an error names user and database.
	var connecting *pgconn.ConnectError
	if errors.As(err, &connecting) {
		err = connecting.Unwrap()
	}
	var certificate *tls.CertificateVerificationError
	var network net.Error
	switch {
	case errors.As(err, &certificate):
		return fmt.Errorf("%s: %s", doing, purge.Unverified(certificate.Err.Error()))
	case strings.Contains(err.Error(), "server refused TLS connection"): // an error that pgx has no name for
		return fmt.Errorf("%s: server refused TLS connection: turn TLS on there (ssl = on), or set DB_TLS=disable, which sends all in plaintext", doing)
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout():
		return fmt.Errorf("%s: %w", doing, purge.NoAnswer(!strings.Contains(err.Error(), "dial error"))) // as above
	default:
		return fmt.Errorf("%s: %w: %s", doing, purge.ErrLost, redact.Login(err.Error(), c.server.User, c.server.Password))
	}
}

// mostCanceled is how many statements in turn somebody may cancel that are tried again.
const mostCanceled = 3

// surprises are what a table is no longer fit for that was examined and found fit. The
// first two are raised by our own statements, see sqlUnchanged and sqlProve.
var surprises = map[string]error{
	pgerrcode.InvalidTextRepresentation: purge.ErrChanged,
	pgerrcode.DivisionByZero:            purge.ErrOverfull,
	pgerrcode.InsufficientPrivilege:     purge.ErrChanged,
	pgerrcode.UndefinedTable:            purge.ErrChanged,
	pgerrcode.UndefinedColumn:           purge.ErrChanged,
	pgerrcode.UndefinedFunction:         purge.ErrChanged,
	pgerrcode.InvalidSchemaName:         purge.ErrChanged,
}

// explainRefusal explains what the server itself says.
func (c *conn) explainRefusal(doing string, refused *pgconn.PgError) error {
	message := fmt.Sprintf("%s (SQLSTATE %s)", redact.Login(refused.Message, c.server.User, c.server.Password), refused.Code)
	say := func(format string, args ...any) error { return fmt.Errorf(doing+": "+format, args...) }
	if c.facts.oid != 0 && refused.Where == "" { // else a trigger's function raised it
		if found := surprises[refused.Code]; found != nil {
			return say("%w: %s", found, message)
		}
	}
	switch refused.Code {
	case pgerrcode.LockNotAvailable, pgerrcode.DeadlockDetected, pgerrcode.SerializationFailure:
		return say("%w: SQLSTATE %s", purge.ErrLocked, refused.Code)
	case pgerrcode.QueryCanceled: // by our own limit, or by somebody
		if c.tookItsTime() {
			return say("%w: SQLSTATE %s", purge.ErrTimeout, refused.Code)
		}
		if c.canceled++; c.canceled > mostCanceled {
			return say("%s: another session canceled the statement", message)
		}
		return say("%w: %s: another session canceled the statement", purge.ErrLocked, message)
	case pgerrcode.InvalidPassword, pgerrcode.InvalidAuthorizationSpecification:
		if strings.Contains(refused.Message, "pg_hba.conf") { // which is asked before the password
			return c.noAccess("pg_hba.conf doesn't let the login into database %s (SQLSTATE %s): let it in there; or, if it says so for a lack of encryption, set DB_TLS to verify-full", refused.Code)
		}
		return say("%w (SQLSTATE %s): check user name and password", purge.ErrLogin, refused.Code)
	case pgerrcode.InvalidCatalogName:
		return purge.NotPurgeable{Kind: purge.NoDatabase, Message: fmt.Sprintf("database %s does not exist on this server", c.database)}
	case pgerrcode.InsufficientPrivilege:
		if c.pg == nil {
			return c.noAccess("the login may not connect to database %s (SQLSTATE %s): run infra/postgres/role.sql there", refused.Code)
		}
	case pgerrcode.ReadOnlySQLTransaction:
		return say("%s: use the writer's endpoint, not a reader's; on the writer, default_transaction_read_only is on", message)
	}
	if kind := kindOf(refused); kind != nil {
		return say("%w: %s", kind, message)
	}
	return say("%s", message)
}

// kindOf returns what a refusal is to the domain, by the class of its code; nil is a
// plain error.
func kindOf(refused *pgconn.PgError) error {
	switch code := refused.Code; {
	case pgerrcode.IsConnectionException(code) || pgerrcode.IsOperatorIntervention(code):
		return purge.ErrLost
	case pgerrcode.IsInsufficientResources(code): // a full disk gets no emptier by trying again
		return nil
	case pgerrcode.IsIntegrityConstraintViolation(code), refused.Where != "":
		return purge.ErrRefused
	}
	return nil
}

func (c *conn) noAccess(format, code string) error {
	return purge.NotPurgeable{Kind: purge.NoAccess, Message: fmt.Sprintf(format, c.database, code)}
}
