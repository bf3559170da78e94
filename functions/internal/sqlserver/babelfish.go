package sqlserver

import (
	"crypto/md5" //nolint:gosec // as Babelfish does
	"fmt"
	"strings"
	"time"

	mssql "github.com/microsoft/go-mssqldb"
)

// Babelfish is PostgreSQL that speaks T-SQL. It keeps a datetime to the millisecond,
// where SQL Server has 300 instants a second, and sends a client the nearest of
// those. So two expirations that differ may look alike here, and one may lie a
// little before or after what came of it. facts.exact is false then.

// babelfish is how the name of the product begins in @@VERSION.
const babelfish = "Babelfish"

// babelfishSameType is sqlSameType where types have other numbers, and sys.columns
// takes milliseconds.
const babelfishSameType = `SELECT * FROM INFORMATION_SCHEMA.COLUMNS
    WHERE TABLE_SCHEMA = '{schema}' AND TABLE_NAME = '{relation}' AND COLUMN_NAME = '{expiration}' AND DATA_TYPE = '{type}'`

// babelfishTick is how far the instants of a datetime2 lie apart there.
const babelfishTick = time.Microsecond

// startOf returns the latest instant that surely is not after an expiration which
// the server sent as at.
func (f facts) startOf(at time.Time) time.Time {
	if f.exact || f.typeName == typeDatetime2 {
		return at
	}
	return datetime(at.Add(-time.Millisecond))
}

// endOf returns an instant that surely is after each expiration that startOf
// takes for one at from.
func (f facts) endOf(from time.Time) time.Time {
	if f.exact || f.typeName == typeDatetime2 {
		return f.next(from)
	}
	return next(next(from))
}

// longest is Server.Longest. Babelfish reads no cancellation while a statement runs, so that
// one costs the connection: there a batch has the time as well that would pass until then.
func (c *conn) longest() time.Duration {
	if c.facts.exact || c.server.Longest <= 0 {
		return c.server.Longest
	}
	return c.server.Longest + c.server.linger()
}

// babelfishNameBytes is the most that a name of Babelfish has.
const babelfishNameBytes = 63

// opens tells whether the database that is open is the one of this name. Whatever the
// letter case, a server that tells two apart would not have opened the other. Babelfish
// gives a long name a digest for its end.
func (f facts) opens(name string) bool {
	if lower := strings.ToLower(name); !f.exact && len(lower) > babelfishNameBytes {
		digest := fmt.Sprintf("%x", md5.Sum([]byte(lower))) //nolint:gosec // the name is no secret
		name = lower[:babelfishNameBytes-len(digest)] + digest
	}
	return strings.EqualFold(f.database, name)
}

// anyError is Babelfish's number for all errors of PostgreSQL that it has no other
// number for.
const anyError = 33557097

// babelfishNumber returns the number that SQL Server would give the error.
func babelfishNumber(err mssql.Error) int32 {
	switch {
	case err.Number != anyError:
		return err.Number
	case strings.Contains(err.Message, "due to lock timeout"):
		return lockTimeout
	case strings.Contains(err.Message, "Cannot open database"):
		return cannotOpenDatabase
	case strings.Contains(err.Message, "permission denied"):
		return permissionDenied
	case strings.HasPrefix(err.Message, "relation ") && strings.HasSuffix(err.Message, "does not exist"):
		return invalidObject
	case strings.Contains(err.Message, "violates foreign key"):
		return foreignKey
	case strings.Contains(err.Message, "the database system is "): // starting, stopping or recovering
		return notReady
	case strings.Contains(err.Message, "too many clients already"), strings.Contains(err.Message, "connection slots are reserved"):
		return mostConnections
	default:
		return err.Number
	}
}

// babelfishBlockers is sqlBlockers by PostgreSQL's own views, which everybody may see.
const babelfishBlockers = `
SELECT TOP (3) a.pid, COALESCE(NULLIF(a.application_name, ''), a.usename, 'another user')
FROM pg_stat_activity AS a
WHERE a.application_name <> APP_NAME()
  AND EXISTS (SELECT * FROM pg_locks AS l
              WHERE l.pid = a.pid AND l.relation = OBJECT_ID('{table}', 'U') AND CAST(l.granted AS int) = 1
                AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock'))
ORDER BY a.xact_start`
