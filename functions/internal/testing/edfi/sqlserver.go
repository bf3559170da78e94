package edfi

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	mssql "github.com/microsoft/go-mssqldb"
)

//go:embed sqlserver.sql
var sqlServerSchema string

//go:embed sqlserver_tables.sql
var sqlServerTables string

// SQLServer returns the address of the SQL Server to test on, for an
// administrator: TEST_SQLSERVER_URL, sqlserver://user:password@host:port?....
// It is nil where that is unset: the tests can't download a SQL Server.
func SQLServer() (*url.URL, error) {
	given := os.Getenv("TEST_SQLSERVER_URL")
	if given == "" {
		return nil, nil
	}
	address, err := url.Parse(given)
	if err != nil || address.Scheme != "sqlserver" || address.User == nil {
		return nil, fmt.Errorf("TEST_SQLSERVER_URL is no address of the form sqlserver://user:password@host:port?database=master")
	}
	return address, nil
}

// OpenSQLServer opens a database on the server at this address.
func OpenSQLServer(address *url.URL, database string) (*sql.DB, error) {
	there := *address
	query := there.Query()
	query.Set("database", database)
	there.RawQuery = query.Encode()
	connector, err := mssql.NewConnector(there.String())
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// CreateSQLServerDatabase makes an Ed-Fi admin database and opens it.
func CreateSQLServerDatabase(ctx context.Context, address *url.URL, name string) (*sql.DB, error) {
	master, err := OpenSQLServer(address, "master")
	if err != nil {
		return nil, err
	}
	defer master.Close() //nolint:errcheck // the statement has ended
	for tries := 0; ; tries++ {
		_, err := master.ExecContext(ctx, "CREATE DATABASE ["+strings.ReplaceAll(name, "]", "]]")+"]")
		if err == nil {
			break
		}
		if tries == 10 || !strings.Contains(err.Error(), "concurrently updated") { // Babelfish, by the tests of another package
			return nil, fmt.Errorf("create database %s: %w", name, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	db, err := OpenSQLServer(address, name)
	if err != nil {
		return nil, err
	}
	return db, ExecBatches(ctx, db, sqlServerSchema)
}

// CreateOtherSQLServerTables creates the tables of other products beside Ed-Fi's.
func CreateOtherSQLServerTables(ctx context.Context, db *sql.DB) error {
	return ExecBatches(ctx, db, sqlServerTables)
}

// DropSQLServerDatabase drops a database, whoever is connected to it.
func DropSQLServerDatabase(ctx context.Context, address *url.URL, name string) error {
	master, err := OpenSQLServer(address, "master")
	if err != nil {
		return err
	}
	defer master.Close() //nolint:errcheck // the statement has ended
	for tries := range 1500 {
		if _, err = master.ExecContext(ctx, "DROP DATABASE ["+strings.ReplaceAll(name, "]", "]]")+"]"); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond) // a session takes a moment to end
		if tries > 1 {
			master.ExecContext(ctx, KillSessions, sql.Named("database", name), sql.Named("login", "")) //nolint:errcheck // DROP would say
		}
	}
	return fmt.Errorf("drop database %s: %w", name, err)
}

// KillSessions ends the sessions in @database of @login, or all but one's own
// where that is "".
const KillSessions = `
DECLARE @kill nvarchar(max) = N'';
SELECT @kill = @kill + N'KILL ' + CAST(session_id AS nvarchar(10)) + N'; '
FROM sys.dm_exec_sessions
WHERE database_id = DB_ID(@database) AND (login_name = @login OR @login = '') AND session_id <> @@SPID;
EXEC (@kill)`

var batchEnd = regexp.MustCompile(`(?mi)^\s*GO\s*$`)

// ExecBatches runs a script whose batches end in GO, as sqlcmd would.
func ExecBatches(ctx context.Context, db *sql.DB, script string) error {
	for _, batch := range batchEnd.Split(script, -1) {
		if strings.TrimSpace(batch) == "" {
			continue
		}
		if _, err := db.ExecContext(ctx, batch); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(batch), err)
		}
	}
	return nil
}
