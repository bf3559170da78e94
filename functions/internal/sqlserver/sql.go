package sqlserver

// Every statement that this package sends. A table hint stands where a purge
// would otherwise wait for, or hold up, the API: few installations have
// READ_COMMITTED_SNAPSHOT, so that readers and writers meet.
const (
	// The session's settings, which a user's or a server's defaults may change.
	// In a deadlock the purge is the one to give way. An error undoes its
	// statement, and one statement is one transaction.
	sqlSettings = `
SET NOCOUNT ON;
SET XACT_ABORT ON;
SET IMPLICIT_TRANSACTIONS OFF;
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET DEADLOCK_PRIORITY LOW;`

	// The catalogue, and why a database of it is none to connect to.
	sqlDatabases = `
SELECT name,
       CASE WHEN name IN ('master', 'model', 'msdb', 'tempdb') THEN 'it is a system database'
            WHEN state <> 0 THEN 'it is not online'
            WHEN user_access = 1 THEN 'it is in single-user mode'
            WHEN is_read_only = 1 THEN 'it is read-only'
            WHEN coalesce(HAS_DBACCESS(name), 0) = 0 THEN 'the login may not connect to it'
            ELSE '' END
FROM sys.databases
ORDER BY name`

	// What must be known before anything is deleted, in one round trip with the
	// settings.
	sqlFacts = `
SELECT GETUTCDATE(),
       CASE WHEN DATEPART(millisecond, CAST('2000-01-01T00:00:00.001' AS datetime)) = 0 THEN 1 ELSE 0 END,
       coalesce(CAST(DATABASEPROPERTYEX(DB_NAME(), 'Updateability') AS nvarchar(20)), ''),
       coalesce(OBJECT_ID('dbo.ClientAccessTokens', 'U'), 0),
       coalesce((SELECT TYPE_NAME(c.system_type_id) FROM sys.columns AS c
                 WHERE c.object_id = OBJECT_ID('dbo.ClientAccessTokens', 'U') AND c.name = 'Expiration'), ''),
       coalesce(HAS_PERMS_BY_NAME('dbo.ClientAccessTokens', 'OBJECT', 'SELECT'), 0),
       coalesce(HAS_PERMS_BY_NAME('dbo.ClientAccessTokens', 'OBJECT', 'DELETE'), 0),
       (SELECT COUNT(*) FROM sys.indexes AS i
        JOIN sys.index_columns AS k ON k.object_id = i.object_id AND k.index_id = i.index_id AND k.key_ordinal = 1
        JOIN sys.columns AS c ON c.object_id = k.object_id AND c.column_id = k.column_id
        WHERE i.object_id = OBJECT_ID('dbo.ClientAccessTokens', 'U') AND c.name = 'Expiration'
          AND i.type IN (1, 2) AND i.is_disabled = 0 AND i.is_hypothetical = 0 AND i.has_filter = 0)`

	// What a check tells beyond the facts, in one round trip.
	sqlCheck = `
SELECT CASE WHEN @@VERSION LIKE 'Babelfish%' THEN 'Babelfish' ELSE 'SQL Server' END,
       CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(50)),
       CAST(SERVERPROPERTY('Edition') AS nvarchar(100)),
       COALESCE((SELECT d.is_read_committed_snapshot_on FROM sys.databases AS d WHERE d.database_id = DB_ID()), 0),
       DATEDIFF(minute, GETUTCDATE(), GETDATE()),
       COALESCE((SELECT STRING_AGG(CAST('ALTER TABLE dbo.ClientAccessTokens DISABLE TRIGGER ' + QUOTENAME(t.name) + ';' AS nvarchar(max)), ' ')
                 FROM sys.triggers AS t
                 WHERE t.parent_id = OBJECT_ID('dbo.ClientAccessTokens', 'U') AND t.is_disabled = 0), ''),
       COALESCE((SELECT STRING_AGG(CAST('ALTER TABLE ' + QUOTENAME(OBJECT_SCHEMA_NAME(f.parent_object_id)) + '.' + QUOTENAME(OBJECT_NAME(f.parent_object_id))
                                        + ' DROP CONSTRAINT ' + QUOTENAME(f.name) + ';' AS nvarchar(max)), ' ')
                 FROM sys.foreign_keys AS f
                 WHERE f.referenced_object_id = OBJECT_ID('dbo.ClientAccessTokens', 'U')), ''),
       COALESCE((SELECT SUM(p.rows) FROM sys.partitions AS p
                 WHERE p.object_id = OBJECT_ID('dbo.ClientAccessTokens', 'U') AND p.index_id IN (0, 1)), 0)`

	// The pages of 8 kB of the table and its indexes.
	sqlPages = `
SELECT COALESCE(SUM(a.total_pages), 0)
FROM sys.partitions AS p
JOIN sys.allocation_units AS a ON a.container_id = p.partition_id
WHERE p.object_id = OBJECT_ID('dbo.ClientAccessTokens', 'U')`

	// Enabled jobs of SQL Server Agent that delete tokens, in any letter case.
	sqlJobs = `
SELECT DISTINCT j.name
FROM msdb.dbo.sysjobs AS j
JOIN msdb.dbo.sysjobsteps AS s ON s.job_id = j.job_id
WHERE j.enabled = 1 AND s.command COLLATE Latin1_General_CI_AS LIKE N'%DELETE%ClientAccessTokens%'`

	// One run at a time for each database; on Babelfish all of them share the
	// names of locks. The server lets the lock go when the connection ends,
	// however it ends.
	sqlLock = `
DECLARE @result int, @name nvarchar(255) = N'edfi-token-purge ' + DB_NAME();
EXEC @result = sp_getapplock @Resource = @name, @LockMode = 'Exclusive', @LockOwner = 'Session', @LockTimeout = 10;
SELECT @result`

	sqlUnlock = `
DECLARE @name nvarchar(255) = N'edfi-token-purge ' + DB_NAME();
EXEC sp_releaseapplock @Resource = @name, @LockOwner = 'Session'`

	// Sent ahead of the statements below, now and then, with the milliseconds.
	sqlLimits = `SET LOCK_TIMEOUT %d`

	// A dry run's count, which holds up nobody, and may count what another
	// session is about to commit or to undo.
	sqlCount = `
SELECT COUNT_BIG(*) FROM dbo.ClientAccessTokens WITH (NOLOCK)
WHERE Expiration >= @from AND Expiration < @to`

	// Expiration windows.
	//
	// A look passes over rows that others have locked; where there are no others,
	// it waits for those: only then it proves that nothing is left.
	sqlOldest = `
DECLARE @oldest datetime = (
    SELECT MIN(Expiration) FROM dbo.ClientAccessTokens WITH (READCOMMITTEDLOCK, READPAST)
    WHERE Expiration >= @from AND Expiration < @to);
IF @oldest IS NULL SET @oldest = (
    SELECT MIN(Expiration) FROM dbo.ClientAccessTokens
    WHERE Expiration >= @from AND Expiration < @to);
SELECT @oldest`

	sqlEnd = `
SELECT Expiration FROM dbo.ClientAccessTokens WITH (READCOMMITTEDLOCK, READPAST)
WHERE Expiration >= @from AND Expiration < @to
ORDER BY Expiration OFFSET @n ROWS FETCH NEXT 1 ROWS ONLY`

	// From 5,000 locks on, a statement's locks become one on the whole table. Rows
	// that came in since the batch was cut, or were locked then, must not lead
	// there. The plan is made for few rows: one that was made for most of a small
	// table would scan the table, for each batch of it when it is large.
	sqlDelete = `
DELETE TOP (@most) FROM dbo.ClientAccessTokens WITH (ROWLOCK)
WHERE Expiration >= @from AND Expiration < @to
OPTION (OPTIMIZE FOR (@from = '17530101', @to = '17530102'));
SET @deleted = @@ROWCOUNT`

	// The first batch of a connection: where a trigger stands in for DELETE, or
	// puts the rows back, @@ROWCOUNT counts rows that are still there. The Ids
	// stay on the server.
	sqlDeleteVerifying = `
DECLARE @gone TABLE (Id uniqueidentifier NOT NULL);
DELETE TOP (@most) FROM dbo.ClientAccessTokens WITH (ROWLOCK)
OUTPUT deleted.Id INTO @gone
WHERE Expiration >= @from AND Expiration < @to
OPTION (OPTIMIZE FOR (@from = '17530101', @to = '17530102'));
SET @deleted = (
    SELECT COUNT(*) FROM @gone AS gone
    WHERE NOT EXISTS (SELECT * FROM dbo.ClientAccessTokens AS token WHERE token.Id = gone.Id))`

	// Ranges of the clustered key, where expirations don't tell rows apart. Each
	// of the statements above then has one of these for its window. A range ends
	// before @upper, the last one with it. Only the server knows the order of its
	// keys; those that come to the client, to say where a range ends, are of rows
	// that have expired: no live token is ever read.
	sqlWindow = `Expiration >= @from AND Expiration < @to`

	sqlByKey = sqlWindow + ` AND Id >= @lower AND Id <= @upper AND (Id < @upper OR @last = 1)`

	// The same where an index on expiration leads to the keys of one expiration,
	// in their order.
	sqlByKeyOfOne = `Expiration = @from AND Expiration < @to AND Id >= @lower AND Id <= @upper AND (Id < @upper OR @last = 1)`

	sqlEndByKey = `
SELECT Id FROM dbo.ClientAccessTokens WITH (READCOMMITTEDLOCK, READPAST)
WHERE Expiration >= @from AND Expiration < @to
ORDER BY Id OFFSET @n ROWS FETCH NEXT 1 ROWS ONLY`
)
