package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"edfi-token-purge/functions/internal/dial"
	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// explain says what doing failed at, and for the errors that an operator can
// mend, how. It leaves out what may quote a row or the login: a message's
// detail and context, and the user's name.
func (c *conn) explain(doing string, err error) error {
	var refused *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, purge.ErrTimeout), errors.Is(err, errPooled):
		return err
	case errors.As(err, &refused):
		return c.explainRefusal(doing, refused)
	}
	// What a driver wraps around an error names user and database.
	var connecting *pgconn.ConnectError
	if errors.As(err, &connecting) {
		err = connecting.Unwrap()
	}
	certificate := purge.CertificateFault(err.Error())
	switch {
	case certificate != "":
		return fmt.Errorf("%s: %s", doing, certificate)
	case strings.Contains(err.Error(), "server refused TLS connection"): // an error that pgx has no name for
		return fmt.Errorf("%s: server refused TLS connection: turn TLS on there (ssl = on), or set DB_TLS=disable, which sends all in plaintext", doing)
	case !c.served && (isNotServed(err) || c.pg != nil && c.pg.IsClosed()):
		return fmt.Errorf("%s: %w: it took the connection and then said nothing: it may start, wake or fail over; if it stays so, check that host and port are PostgreSQL's", doing, purge.ErrNotYet)
	case isTimeout(err):
		return fmt.Errorf("%s: %w", doing, purge.NoAnswer(isReached(err)))
	case c.pg != nil && !c.pg.IsClosed() && !isOfTheWire(err): // the driver's own, which another connection does not mend
		return fmt.Errorf("%s: %s", doing, redact.Login(err.Error(), c.server.User, c.server.Password))
	default:
		return fmt.Errorf("%s: %w: %s", doing, purge.ErrLost, redact.Login(err.Error(), c.server.User, c.server.Password))
	}
}

// isOfTheWire tells whether an error is one of the connection.
func isOfTheWire(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, errEnded)
}

// mostCanceled is how many statements in turn somebody may cancel that are tried again.
const mostCanceled = 3

// surprises are what a table is no longer fit for that was examined and found fit. The
// first three are raised by our own statements, see sqlUnchanged, sqlUntil and sqlProve.
var surprises = map[string]error{
	pgerrcode.InvalidTextRepresentation: purge.ErrChanged,
	pgerrcode.InvalidDatetimeFormat:     purge.ErrChanged,
	pgerrcode.DivisionByZero:            purge.ErrOverfull,
	pgerrcode.InsufficientPrivilege:     purge.ErrChanged,
	pgerrcode.UndefinedTable:            purge.ErrChanged,
	pgerrcode.UndefinedColumn:           purge.ErrChanged,
	pgerrcode.UndefinedFunction:         purge.ErrChanged,
	pgerrcode.InvalidSchemaName:         purge.ErrChanged,
	// Its deletes were published, in a way that the server refuses them for.
	pgerrcode.ObjectNotInPrerequisiteState: purge.ErrChanged,
	pgerrcode.InvalidColumnReference:       purge.ErrChanged,
}

// isNotServed tells whether a log-in failed as it does at a server that takes
// connections and does not serve yet: it says so, says nothing, or ends the connection
// without a word, as a relay does that has nobody behind it.
func isNotServed(err error) bool {
	switch sqlState(err) {
	case pgerrcode.CannotConnectNow, pgerrcode.AdminShutdown, pgerrcode.CrashShutdown:
		return true
	case "":
		closed := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		return isReached(err) && (closed || isTimeout(err))
	}
	return false
}

// isReached tells whether the server had taken the connection. One that is reset may
// end before we know that it was taken.
func isReached(err error) bool {
	var refused *dial.Error
	return !errors.As(err, &refused) || errors.Is(err, syscall.ECONNRESET)
}

func isTimeout(err error) bool {
	var network net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout()
}

// sqlState returns the code of a server's error, "" for any other.
func sqlState(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

// sessionLimit is [purge.ErrLost], for the reason that a setting of this name ended the
// session.
type sessionLimit string

func (l sessionLimit) Error() string { return purge.ErrLost.Error() }

// Is tells errors.Is so.
func (sessionLimit) Is(target error) bool { return target == purge.ErrLost }

// sessionLimits are those that may end a session before a statement has lifted them.
var sessionLimits = map[string]sessionLimit{
	"25P04": "transaction_timeout",  // of PostgreSQL 17 and later
	"57P05": "idle_session_timeout", // of 14 and later
}

// explainRefusal explains what the server itself says.
func (c *conn) explainRefusal(doing string, refused *pgconn.PgError) error {
	message := fmt.Sprintf("%s (SQLSTATE %s)", redact.Login(refused.Message, c.server.User, c.server.Password), refused.Code)
	say := func(format string, args ...any) error { return fmt.Errorf(doing+": "+format, args...) }
	if c.isRaised(refused) {
		return say("%w: %s", purge.ErrRefused, message)
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
		return say("%w (SQLSTATE %s): where the role's time is over, or it may not log in, ALTER ROLE edfi_token_purge LOGIN VALID UNTIL 'infinity'; else check user name and password", purge.ErrLogin, refused.Code)
	case pgerrcode.CharacterNotInRepertoire, pgerrcode.UntranslatableCharacter:
		if c.facts.oid != 0 { // our own statements have no such letters
			return say("%w, and says why in letters that can't be shown: %s", purge.ErrRefused, message)
		}
	case pgerrcode.TooManyConnections:
		return say("%w: %s%s", purge.ErrNoSlot, message, c.raiseLimit(refused))
	case pgerrcode.ReadOnlySQLTransaction: // it was writable, else it had not been opened
		return purge.Uncommitted(say("%w: %s: the server has become a reader", purge.ErrLost, message))
	case pgerrcode.ProtocolViolation:
		return c.explainPooler(say, refused.Message, message)
	}
	if unfit := c.unfit(refused, message); unfit != nil {
		return unfit
	}
	if kind := c.kindOf(refused); kind != nil {
		return say("%w: %s", kind, message)
	}
	return say("%s", message)
}

// raiseLimit returns how to raise the limit that was met, where it is not the server's: a
// limit of 0 ends by itself never. The message itself may be in any language.
func (c *conn) raiseLimit(refused *pgconn.PgError) string {
	switch refused.Routine {
	case "InitializeSessionUserId":
		return ": raise the limit: ALTER ROLE edfi_token_purge CONNECTION LIMIT -1;"
	case "CheckMyDatabase":
		return fmt.Sprintf(": raise the limit: ALTER DATABASE %s CONNECTION LIMIT -1;", pgx.Identifier{c.database}.Sanitize())
	}
	return ""
}

// unfit returns why the database, or its table, can't be purged; nil is nothing that a
// refusal tells.
func (c *conn) unfit(refused *pgconn.PgError, message string) error {
	switch code := refused.Code; {
	case code == pgerrcode.InvalidCatalogName:
		return purge.NotPurgeable{Kind: purge.NoDatabase, Message: fmt.Sprintf("database %s does not exist on this server", c.database)}
	case code == pgerrcode.InsufficientPrivilege && c.pg == nil:
		return purge.NotPurgeable{Kind: purge.NoAccess, Message: fmt.Sprintf("the login may not connect to database %s (SQLSTATE %s): run infra/postgres/role.sql there, or GRANT CONNECT ON DATABASE %s TO edfi_token_purge;",
			c.database, code, pgx.Identifier{c.database}.Sanitize())}
	case code == pgerrcode.ObjectNotInPrerequisiteState && c.pg == nil && refused.Routine == "CheckMyDatabase": // not one that a DROP left half done
		return purge.NotPurgeable{Kind: purge.NoAccess, Message: fmt.Sprintf("database %s takes no connections (SQLSTATE %s): ALTER DATABASE %s ALLOW_CONNECTIONS true;", c.database, code, pgx.Identifier{c.database}.Sanitize())}
	case code == pgerrcode.InvalidColumnReference && c.facts.misnamed != "": // none of ours names a column that may not be there
		return purge.NotPurgeable{Kind: purge.NoReplicaIdentity, Message: message + ": a publication has the table's deletes with a condition, or a list of columns, that the table's replica identity does not go with, so that the server refuses them: " + c.facts.misnamed}
	}
	return nil
}

// isRaised tells whether a trigger's function raised an error, as it may do with any code:
// one that reaches for another server has those of lost connections. Locks, time and
// resources are the server's all the same, and so is that it has become a reader.
func (c *conn) isRaised(refused *pgconn.PgError) bool {
	switch code := refused.Code; code {
	case pgerrcode.LockNotAvailable, pgerrcode.DeadlockDetected, pgerrcode.SerializationFailure, pgerrcode.QueryCanceled, pgerrcode.ReadOnlySQLTransaction:
		return false
	default:
		resources := pgerrcode.IsInsufficientResources(code) && code != pgerrcode.TooManyConnections
		return c.facts.oid != 0 && refused.Where != "" && refused.SeverityUnlocalized != "FATAL" && !resources
	}
}

// kindOf returns what a refusal is to the domain, by its code; nil is a plain error.
func (c *conn) kindOf(refused *pgconn.PgError) error {
	if c.facts.oid != 0 && surprises[refused.Code] != nil {
		return surprises[refused.Code]
	}
	switch code := refused.Code; {
	case code == pgerrcode.CannotConnectNow || !c.served && isNotServed(refused):
		return purge.ErrNotYet
	case sessionLimits[code] != "":
		return sessionLimits[code]
	case code == pgerrcode.IdleInTransactionSessionTimeout || pgerrcode.IsConnectionException(code) || pgerrcode.IsOperatorIntervention(code):
		return purge.ErrLost
	case pgerrcode.IsInsufficientResources(code): // a full disk gets no emptier by trying again
		return nil
	case pgerrcode.IsIntegrityConstraintViolation(code):
		return purge.ErrRefused
	}
	return nil
}

// explainPooler explains what PgBouncer says, which has one code for nearly all of it.
func (c *conn) explainPooler(say func(string, ...any) error, said, message string) error {
	has := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(said, text) })
	}
	switch {
	case has("no more connections allowed", "query_wait_timeout", "too many connections", "too many clients", "connection slots"):
		return say("%w: %s", purge.ErrNoSlot, message)
	case has("no such database", "does not exist"):
		return purge.NotPurgeable{Kind: purge.NoDatabase, Message: fmt.Sprintf("database %s does not exist behind the pooler in between", c.database)}
	case has("authentication failed"):
		return say("%w (SQLSTATE %s): check user name and password", purge.ErrLogin, pgerrcode.ProtocolViolation)
	case has("server_login_retry", "server login", "cannot connect to server", "connect failed", "shutting down", "starting up"):
		return say("%w: %s", purge.ErrNotYet, message)
	}
	return say("%w: %s", purge.ErrLost, message)
}

func (c *conn) noAccess(format, code string) error {
	return purge.NotPurgeable{Kind: purge.NoAccess, Message: fmt.Sprintf(format, c.database, code)}
}
