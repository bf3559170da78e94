package sqlserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	mssql "github.com/microsoft/go-mssqldb"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// The numbers of errors that mean something for a purge, by the names of their
// messages in sys.messages.
const (
	lockTimeout      = 1222
	deadlock         = 1205
	snapshotConflict = 3960
	dataMovement     = 601 // rows moved under a look

	loginFailed        = 18456
	loginDisabled      = 18470
	loginLockedOut     = 18486
	passwordExpired    = 18487
	passwordMustChange = 18488

	cannotOpenDatabase = 4060
	noSuchDatabase     = 911

	permissionDenied       = 229
	columnPermissionDenied = 230

	databaseReadOnly   = 3906
	databaseInRecovery = 3908
	readIntentOnly     = 978

	sessionKilled        = 596
	shutdownInProgress   = 6005
	replicaNotAccessible = 983
	replicaNotPrimary    = 976
	outOfMemory          = 701
	outOfLocks           = 1204
	memoryWaitTimeout    = 8645
	azureRequestFailed   = 40197
	azureBusy            = 40501
	azureUnavailable     = 40613
	azureOutOfResources  = 49918

	// fatalClass is the severity from which on the server ends the connection.
	fatalClass = 20
)

// explain says what doing failed at, and for the errors that an operator can
// mend, how. It leaves out what may quote a row or the login: the user's name.
func (c *conn) explain(doing string, err error) error {
	var refused mssql.Error
	var network net.Error
	switch {
	case err == nil, errors.Is(err, purge.ErrTimeout):
		return err
	case errors.As(err, &refused):
		return c.explainRefusal(doing, refused)
	}
	text := err.Error() // of many an error the driver keeps no more
	_, unverified, isUnverified := strings.Cut(text, "failed to verify certificate: ")
	switch {
	case isUnverified:
		return fmt.Errorf("%s: %s", doing, purge.Unverified(unverified))
	case strings.Contains(text, "server does not support encryption"):
		return fmt.Errorf("%s: server does not support encryption: turn it on there, or set DB_TLS=disable, which sends all in plaintext", doing)
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout() || strings.Contains(text, os.ErrDeadlineExceeded.Error()):
		return fmt.Errorf("%s: %w", doing, purge.NoAnswer(c.wire != nil))
	default:
		return fmt.Errorf("%s: %w: %s", doing, purge.ErrLost, redact.Login(text, c.server.User, c.server.Password))
	}
}

// explainRefusal explains what the server itself says.
func (c *conn) explainRefusal(doing string, refused mssql.Error) error {
	message := fmt.Sprintf("%s (error %d)", redact.Login(refused.Message, c.server.User, c.server.Password), refused.Number)
	say := func(format string, args ...any) error { return fmt.Errorf(doing+": "+format, args...) }
	switch number(refused) {
	case lockTimeout, deadlock, snapshotConflict, dataMovement:
		return say("%w: error %d", purge.ErrLocked, refused.Number)
	case loginFailed, loginDisabled, loginLockedOut, passwordExpired, passwordMustChange:
		return say("%w (error %d): check that the login is enabled, and its user name and password", purge.ErrLogin, refused.Number)
	case cannotOpenDatabase, noSuchDatabase:
		return purge.NotPurgeable{Kind: purge.NoDatabase, Message: fmt.Sprintf("database %s does not exist on this server, or the login may not enter it", c.database)}
	case permissionDenied, columnPermissionDenied:
		return say("%s: the login lacks a right, see infra/sqlserver/role.sql", message)
	case databaseReadOnly, databaseInRecovery, readIntentOnly:
		return say("%s: this is a reader; use the writer's endpoint", message)
	case sessionKilled, shutdownInProgress, replicaNotAccessible, replicaNotPrimary,
		outOfMemory, outOfLocks, memoryWaitTimeout,
		azureRequestFailed, azureBusy, azureUnavailable, azureOutOfResources:
		return say("%w: %s", purge.ErrLost, message)
	}
	if refused.Class >= fatalClass {
		return say("%w: %s", purge.ErrLost, message)
	}
	return say("%s", message)
}

// number returns the error's number: that of the first of several, as 18456
// follows 4060.
func number(err mssql.Error) int32 {
	if len(err.All) > 0 {
		err = err.All[0]
	}
	return babelfishNumber(err)
}
