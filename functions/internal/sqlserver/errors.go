package sqlserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	mssql "github.com/microsoft/go-mssqldb"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
)

// The numbers that the code asks for by name.
const (
	permissionDenied       = 229
	columnPermissionDenied = 230
	invalidColumn          = 207
	invalidObject          = 208
	foreignKey             = 547
	lockTimeout            = 1222
	cannotOpenDatabase     = 4060
	endedInTrigger         = 3609 // and the batch was aborted
	blockPredicate         = 33504
	noStatistics           = 2557 // which the login may not view
	notReady               = 17187
	mostConnections        = 17809
	passwordExpired        = 18487
	passwordMustChange     = 18488
	loginDisabled          = 18470
	loginLockedOut         = 18486

	// firstUserError is from where on numbers are of whoever raises the error. These
	// are our own statements'.
	firstUserError  = 50000
	changed         = 1164200553
	rowsLeft        = 1349874279
	endsTransaction = 1298374615
	mayCommit       = 1298374616

	// fatalClass is the severity from which on the server ends the connection.
	fatalClass = 20
)

// meaning is what an error means for a run.
type meaning int

const (
	unknown      meaning = iota
	locked               // a later try may succeed, on the same connection
	busy                 // the same, but it isn't locks: memory is short for the moment
	badLogin             // another secret may be right
	noDatabase           // where it was open before, it may come back
	notThere             // the same, of a state that may last
	notYet               // the server, or the database, serves soon
	noSlot               // nothing to spare for one more session
	reader               // a copy that takes no deletes
	denied               // a right is missing
	outside              // the login may not enter the database
	lost                 // and with it the connection
	tableChanged         // since it was examined
	mendable             // remedies has how
)

// meanings are those of the errors that mean something for a purge, as Microsoft's
// "Database Engine events and errors" lists them with their texts, and "Troubleshoot
// transient connection errors in Azure SQL Database" those from 10928 to 10936 and
// from 40000 on.
var meanings = map[int32]meaning{
	1205: locked, // deadlock
	1222: locked, // lock request time out
	3960: locked, // snapshot conflict
	601:  locked, // rows moved under a look

	701:  busy, // out of memory
	802:  busy, // no buffers
	1204: busy, // no lock resources
	8628: busy, // time out while waiting to optimize
	8645: busy, // time out while waiting for memory
	8651: busy, // the resource pool has too little memory
	8657: busy, // the resource governor's group has

	17803: busy, // no memory for one more connection

	18456: badLogin, 18470: badLogin, 18486: badLogin, 18487: badLogin, 18488: badLogin,

	4060: noDatabase, 911: noDatabase,
	927: notThere, // restoring

	913:   notYet, // not activated yet, or in transition
	921:   notYet, // not recovered yet
	922:   notYet, // being recovered
	941:   notYet, // not started
	952:   notYet, // in transition
	955:   notYet, // a mirrored one that lacks a quorum
	956:   notYet, // one that is not in step with its partner yet
	983:   notYet, // the replica is neither primary nor secondary, while it fails over
	988:   notYet, // the availability group lacks a quorum
	4221:  notYet, // a secondary replica that is about to take queries
	17142: notYet, // paused
	17187: notYet, // starts up
	17188: notYet, // shuts down
	17189: notYet, // no thread for one more log-in
	17197: notYet, // too much load for a log-in in time
	18401: notYet, // upgrades its scripts
	18451: notYet, // shuts down
	40197: notYet, 40501: notYet, 40613: notYet, 49918: notYet, 49919: notYet, 49920: notYet,

	10928: noSlot, 10929: noSlot, 10936: noSlot, // the limit of sessions, workers or requests
	17809: noSlot, // the most user connections

	954:  reader, // a mirror
	976:  reader, // a secondary replica that takes no queries
	978:  reader, // one that takes only those that say that they read
	3906: reader, // read-only
	3908: reader, // in recovery, for reading only

	229: denied, 230: denied,
	916: outside,

	596:  lost, // killed
	1219: lost, // disconnected, for a change of the table that was told to end who blocks it
	6005: lost, // shutdown in progress

	changed: tableChanged, invalidObject: tableChanged, invalidColumn: tableChanged, 4902: tableChanged,
}

// remedies are for the errors that last until somebody acts.
var remedies = map[int32]string{
	605:   damaged,
	823:   damaged,
	824:   damaged,
	923:   "the database is in restricted mode, for its owners alone: ALTER DATABASE ... SET MULTI_USER",
	924:   "the database is in single-user mode, and somebody is in: ALTER DATABASE ... SET MULTI_USER",
	926:   "the database is suspect: look in the server's error log, then restore it or run DBCC CHECKDB",
	942:   "the database is offline: ALTER DATABASE ... SET ONLINE, or leave it out",
	945:   "the database's files, or memory or disk space, are missing: look in the server's error log",
	1101:  full,
	1105:  full,
	9002:  "the transaction log is full: back it up, let it grow or add storage; log_reuse_wait_desc in sys.databases says why it can't be reused",
	3930:  doomed,
	3998:  doomed,
	8649:  "the server's query governor allows no statement of such a cost: raise its option query governor cost limit",
	11305: "the database's compatibility level is below 110, where the server knows no LAG: ALTER DATABASE ... SET COMPATIBILITY_LEVEL = 140",
	18461: "the server is in single-user mode, for one administrator: start it without -m",
	18452: "the server takes Windows logins only: turn on SQL Server authentication (mixed mode)",
	17892: "a logon trigger refuses the login: have it let edfi_token_purge pass",
}

// Remedies for more than one error.
const (
	damaged = "a page of the database is damaged, or its disk: run DBCC CHECKDB, and restore it"
	full    = "the disk or the filegroup is full: let its files grow, or add storage"
	doomed  = "a trigger leaves its transaction so that it can't be committed: look at its TRY and CATCH"
)

// explain says what doing failed at, and for the errors that an operator can
// mend, how. It leaves out what may quote a row or the login: the user's name.
func (c *conn) explain(doing string, err error) error {
	var refused mssql.Error
	switch {
	case err == nil, errors.Is(err, purge.ErrTimeout):
		return err
	case errors.As(err, &refused):
		return c.explainRefusal(doing, refused)
	}
	text := err.Error() // of many an error the driver keeps no more
	if fault := c.encryptionFault(text); fault != "" {
		return fmt.Errorf("%s: %s", doing, fault)
	}
	reached, connected := c.wire != nil, c.session != nil
	var network net.Error
	silent := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout() || strings.Contains(text, os.ErrDeadlineExceeded.Error())
	switch {
	case silent && reached && !connected:
		return purge.Also(fmt.Errorf("%s: %w", doing, purge.NoAnswer(reached)), purge.ErrNotYet)
	case silent:
		return fmt.Errorf("%s: %w", doing, purge.NoAnswer(reached))
	case reached && !connected:
		return purge.Also(fmt.Errorf("%s: the server ended the connection before the login: it may be starting, want another encryption (%s), or know no TLS 1.2: %s", doing, c.otherEncryption(), redact.Login(text, c.server.User, c.server.Password)), purge.ErrNotYet)
	case isOwn(err): // which another connection does not mend
		return fmt.Errorf("%s: %s", doing, redact.Login(text, c.server.User, c.server.Password))
	default:
		return fmt.Errorf("%s: %w: %s", doing, purge.ErrLost, redact.Login(text, c.server.User, c.server.Password))
	}
}

// isNotServed tells whether a log-in failed as it does at an address that takes
// connections and does not serve: another one of the same name may.
func isNotServed(err error) bool {
	if refused, ok := errors.AsType[mssql.Error](err); ok {
		return meanings[number(refused)] == notYet
	}
	return explainTLS(err.Error()) == ""
}

// isOwn tells whether an error is the client's own, over a connection that lives on: it
// can't make sense of what it read.
func isOwn(err error) bool {
	return errors.Is(err, sql.ErrNoRows) || strings.HasPrefix(err.Error(), "sql: Scan error") || strings.HasPrefix(err.Error(), "sql: expected")
}

// otherEncryption says which settings there are besides the one in use.
func (c *conn) otherEncryption() string {
	switch {
	case c.server.TLS == nil:
		return "DB_TLS=verify-full"
	case c.server.Strict:
		return "DB_TLS=verify-full, as only SQL Server 2022 and later know strict"
	default:
		return "DB_TLS=strict, if it forces strict encryption"
	}
}

// encryptionFault is explainTLS. A server that demands encryption is spoken to by the
// driver in TLS although it shall not be.
func (c *conn) encryptionFault(text string) string {
	if fault := explainTLS(text); fault == "" || c.server.TLS != nil {
		return fault
	}
	return "the server demands encryption: set DB_TLS=verify-full"
}

// explainTLS says what is wrong with a server's encryption, and what mends that; "" is
// nothing.
func explainTLS(text string) string {
	has := func(part string) bool { return strings.Contains(text, part) }
	certificate := purge.CertificateFault(text)
	switch {
	case certificate != "":
		return certificate
	case has("server does not support encryption"):
		return "server does not support encryption: turn it on there, or set DB_TLS=disable, which sends all in plaintext"
	case has("unsupported protocol version"), has("protocol version not supported"):
		return "the server knows no TLS 1.2: turn TLS 1.2 on there, and update it if it can't; on RDS, rds.tls12 in the parameter group"
	case has("handshake failure"), has("insufficient security level"), has("invalid signature algorithm"), has("unsupported curve"), has("peer doesn't support any of the certificate's signature algorithms"), has("no cipher suite supported"), has("unsupported signature algorithm"), has("does not match the list of supported"):
		return "the server and this function share no TLS that is safe, for example because the server signs with SHA-1: update it, and turn on TLS 1.2 with SHA-256 and ECDHE there"
	case has("first record does not look like a TLS handshake"), has("unexpected message"), has("no application protocol"):
		return "the server does not speak TLS from the start: DB_TLS=strict is for SQL Server 2022 and later; set DB_TLS=verify-full"
	default:
		return ""
	}
}

// explainRefusal explains what the server itself says.
func (c *conn) explainRefusal(doing string, refused mssql.Error) error {
	n := number(refused)
	message := fmt.Sprintf("%s (error %d)", redact.Login(refused.Message, c.server.User, c.server.Password), refused.Number)
	say := func(format string, args ...any) error { return fmt.Errorf(doing+": "+format, args...) }
	switch meanings[n] {
	case locked:
		return c.explainLock(say("%w: error %d", purge.ErrLocked, refused.Number))
	case busy:
		return say("%w: %s", purge.ErrBusy, message)
	case badLogin:
		return say("%w (error %d): %s", purge.ErrLogin, refused.Number, loginRemedy(n))
	case noDatabase, notThere:
		return c.explainGone(n, message)
	case notYet:
		return say("%w: %s", purge.ErrNotYet, message)
	case noSlot:
		return say("%w: %s: raise the limit", purge.ErrNoSlot, message)
	case reader:
		return purge.NotPurgeable{Kind: purge.ReaderEndpoint, Message: doing + ": " + message + ": this is a reader; use the writer's endpoint", Server: true}
	case denied:
		return c.explainDenied(doing, message, refused)
	case outside:
		return c.noAccess(fmt.Sprintf("error %d", n))
	case lost:
		return say("%w: %s", purge.ErrLost, message)
	case tableChanged:
		return say("%w: %s", purge.ErrChanged, message)
	}
	if remedy := remedies[n]; remedy != "" {
		return say("%s: %s", message, remedy)
	}
	if refused.Class >= fatalClass {
		return say("%w: %s", purge.ErrLost, message)
	}
	return say("%s", message)
}

// explainLock returns err for a statement that met a lock, with more words while the table
// is opened.
func (c *conn) explainLock(err error) error {
	if c.examined {
		return err
	}
	return fmt.Errorf("%w: the table, or the catalogue, is locked, as by an ALTER TABLE; look for a long transaction", err)
}

// explainDenied says which right is missing. One that was there is a failure of its own.
func (c *conn) explainDenied(doing, message string, refused mssql.Error) error {
	if !c.examined {
		return fmt.Errorf("%s: %s: the login lacks a right, see infra/sqlserver/role.sql", doing, message)
	}
	kind := purge.NoSelectRight
	if strings.Contains(refused.Message, "DELETE") || strings.Contains(doing, "delete") {
		kind = purge.NoDeleteRight
	}
	return purge.NotPurgeable{Kind: kind, Message: fmt.Sprintf("%s: %s: the login lacks a right: %s", doing, message, c.facts.grant())}
}

// explainGone returns the error for a database that can't be opened. One that was open in
// this run may be again: it fails over, restarts or is restored.
func (c *conn) explainGone(n int32, message string) error {
	unfit := purge.NotPurgeable{Kind: purge.NoDatabase, Message: fmt.Sprintf("database %s does not exist on this server, or the login may not enter it", c.database)}
	if meanings[n] == notThere {
		unfit.Message = fmt.Sprintf("database %s can't be opened: %s", c.database, message)
	}
	if c.server.Memory.wasOpen(c.database) {
		unfit.Message += fmt.Sprintf(", although it was open before (error %d)", n)
		return purge.Also(unfit, purge.ErrNotYet)
	}
	return unfit
}

func (c *conn) noAccess(why string) error {
	return purge.NotPurgeable{Kind: purge.NoAccess, Message: fmt.Sprintf("the login may not enter database %s (%s): run infra/sqlserver/role.sql there", c.database, why)}
}

// loginRemedy says what mends a login that is refused.
func loginRemedy(n int32) string {
	switch n {
	case passwordExpired, passwordMustChange:
		return "its password has expired or must be changed: ALTER LOGIN ... WITH CHECK_EXPIRATION = OFF, or give it another password, and put that in the secret"
	case loginDisabled:
		return "it is disabled: ALTER LOGIN ... ENABLE"
	case loginLockedOut:
		return "it is locked out after wrong passwords: ALTER LOGIN ... WITH PASSWORD = '...' UNLOCK, and check the secret"
	default:
		return "check user name and password in the secret, and that the login is enabled; a user that only one database contains can log in to no other, so name that database in the secret's dbname"
	}
}

// number returns the error's number: that of the first of several, as 18456
// follows 4060.
func number(err mssql.Error) int32 {
	if len(err.All) > 0 {
		err = err.All[0]
	}
	return babelfishNumber(err)
}
