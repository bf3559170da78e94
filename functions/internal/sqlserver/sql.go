package sqlserver

// Every statement that this package sends. {table}, {expiration} and {key} stand for
// names: see [facts.on]. A table hint stands where a purge would otherwise wait for, or
// hold up, the API: few installations have READ_COMMITTED_SNAPSHOT, so that readers and
// writers meet.
const (
	// The session's settings, which a user's or a server's defaults may change. The
	// longest wait for a lock comes first: a table that is being altered locks the
	// catalogue, too. In a deadlock the purge is the one to give way. An error undoes
	// its statement, and one statement is one transaction. Any of these settings in
	// a statement with parameters would end with it.
	sqlSettings = `
SET LOCK_TIMEOUT %d;
SET NOCOUNT ON;
SET XACT_ABORT ON;
SET IMPLICIT_TRANSACTIONS OFF;
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET DEADLOCK_PRIORITY LOW;`

	// The catalogue, and why a database of it is none to connect to. One that is in
	// single-user mode or read-only is purged, or fails; one that recovers (state 2) is
	// waited for. rdsadmin is Amazon's.
	sqlDatabases = `
SELECT name,
       CASE WHEN name IN ('master', 'model', 'msdb', 'tempdb', 'rdsadmin') OR is_distributor = 1 THEN 'it is a system database'
            WHEN source_database_id IS NOT NULL THEN 'it is a snapshot of another database'
            WHEN state NOT IN (0, 2) THEN 'it is not online, but ' + LOWER(state_desc)
            ELSE '' END
FROM sys.databases
ORDER BY name`

	// The collation by which the server compares names of databases.
	sqlCollation = `SELECT CAST(SERVERPROPERTY('Collation') AS nvarchar(128))`

	// Which of the names a pattern matches, as the server compares names: {names} are rows
	// of a place and a name, {patterns} of a name and a pattern for LIKE.
	sqlMatching = `
SELECT DISTINCT given.place
FROM (VALUES {names}) AS given (place, name)
JOIN (VALUES {patterns}) AS matching (name, pattern)
  ON given.name = matching.name COLLATE {collation}
  OR given.name LIKE matching.pattern COLLATE {collation} ESCAPE N'\'
  OR DB_ID(given.name) = DB_ID(matching.name)`

	// Whether LIKE takes for different what the collation takes for one, as Babelfish's does.
	sqlLikeDiffers = `
SELECT CASE WHEN N'Ａ' = N'A' COLLATE {collation} AND N'Ａb' NOT LIKE N'A%' COLLATE {collation}
              OR N'é' = N'e' COLLATE {collation} AND N'éb' NOT LIKE N'e%' COLLATE {collation} THEN 1 ELSE 0 END AS differs`

	// How one database is, for a login that may not open it.
	sqlDatabaseState = `
SELECT LOWER(state_desc), LOWER(user_access_desc), COALESCE(HAS_DBACCESS(name), 0) FROM sys.databases WHERE name = @name`

	// Whether a trigger may run on DELETE, 1 or 0. Of sys.trigger_events the type 3
	// is DELETE. Where the login can't see whose trigger it is, or whether it is
	// disabled, it counts; who sees one of the table sees all, which have no rights of
	// their own.
	sqlTriggered = `
CASE WHEN OBJECTPROPERTY(OBJECT_ID('{table}', 'U'), 'TableHasDeleteTrigger') = 1
          AND NOT EXISTS (SELECT * FROM sys.triggers AS t WHERE t.parent_id = OBJECT_ID('{table}', 'U'))
       OR EXISTS (SELECT * FROM sys.trigger_events AS e
                  WHERE e.type = 3
                    AND NOT EXISTS (SELECT * FROM sys.triggers AS t
                                    WHERE t.object_id = e.object_id
                                      AND (t.is_disabled = 1 OR t.parent_id <> OBJECT_ID('{table}', 'U'))))
     THEN 1 ELSE 0 END`

	// Whether a row-level security policy filters what the login sees: type 0 is a
	// filter. Only who has VIEW DEFINITION sees policies (sys.security_predicates).
	// Servers before 2016 have no such view, and neither has Babelfish; a batch may
	// name it all the same, where it is not run.
	sqlFiltered = `
DECLARE @filtered bit = 0;
IF OBJECT_ID('sys.security_predicates') IS NOT NULL
    SELECT @filtered = 1
    FROM sys.security_predicates AS p JOIN sys.security_policies AS s ON s.object_id = p.object_id
    WHERE p.target_object_id = OBJECT_ID('{table}', 'U') AND p.predicate_type = 0 AND s.is_enabled = 1;`

	// Whether an index leads to expirations, 1 or 0; with {key} instead, to keys.
	sqlIndexed = `
CASE WHEN EXISTS (
        SELECT * FROM sys.indexes AS i
        JOIN sys.index_columns AS k ON k.object_id = i.object_id AND k.index_id = i.index_id AND k.key_ordinal = 1
        JOIN sys.columns AS c ON c.object_id = k.object_id AND c.column_id = k.column_id
        WHERE i.object_id = OBJECT_ID('{table}', 'U') AND c.name = '{expiration}'
          AND i.type IN (1, 2) AND i.is_disabled = 0 AND i.is_hypothetical = 0 AND i.has_filter = 0)
     THEN 1 ELSE 0 END`

	// What must be known before anything is deleted, in one round trip with the
	// settings.
	sqlFacts = sqlFiltered + `
SELECT GETUTCDATE(),
       DB_NAME(),
       CASE WHEN DATEPART(millisecond, CAST('2000-01-01T00:00:00.001' AS datetime)) = 0 THEN 1 ELSE 0 END,
       CASE WHEN EXISTS (SELECT * FROM sys.databases WHERE database_id = DB_ID() AND is_read_only = 1) THEN 'SET READ_ONLY'
            ELSE coalesce(CAST(DATABASEPROPERTYEX(DB_NAME(), 'Updateability') AS nvarchar(20)), '') END,
       coalesce(OBJECT_ID('{table}', 'U'), 0),
       coalesce((SELECT TYPE_NAME(c.system_type_id) FROM sys.columns AS c
                 WHERE c.object_id = OBJECT_ID('{table}', 'U') AND c.name = '{expiration}'), ''),
       coalesce((SELECT TYPE_NAME(c.system_type_id) FROM sys.columns AS c
                 WHERE c.object_id = OBJECT_ID('{table}', 'U') AND c.name = '{key}'), ''),
       coalesce(HAS_PERMS_BY_NAME('{table}', 'OBJECT', 'SELECT'), 0),
       coalesce(HAS_PERMS_BY_NAME('{table}', 'OBJECT', 'DELETE'), 0),
       ` + sqlIndexed + `,
       ` + sqlTriggered + `,
       CAST(@filtered AS int),
       coalesce((SELECT SUM(p.rows) FROM sys.partitions AS p
                 WHERE p.object_id = OBJECT_ID('{table}', 'U') AND p.index_id IN (0, 1)), 0),
       coalesce((SELECT CASE WHEN OBJECT_ID('dbo.AccessTokenIsValid') IS NOT NULL AND '{relation}' = 'ClientAccessTokens' THEN 'local'
                             WHEN t.is_memory_optimized = 1 THEN 'memory-optimized'
                             WHEN t.temporal_type = 1 THEN 'the history of a temporal table' ELSE '' END
                 FROM sys.tables AS t WHERE t.object_id = OBJECT_ID('{table}', 'U')), 'a view')`

	// The earliest of the clocks that may have written expirations of a table in which
	// their zone is not certain: UTC and the server's. When that is about to be put back,
	// it is what it will show then; when it was put forward while tokens that expired
	// before, @accepted seconds ago at most, are still accepted, it is what it would have
	// shown. Only SQL Server 2022 and later name their zone (CURRENT_TIMEZONE_ID), so that
	// each zone counts that has the server's offset now; "any user with CONNECT permissions
	// can access" them (sys.time_zone_info). Where none has, an hour is taken for what a
	// clock may be set.
	sqlLocalClock = sqlClockNow + `
DECLARE @utc datetime2 = CAST(SWITCHOFFSET(@now, '+00:00') AS datetime2), @clock datetime2 = CAST(@now AS datetime2);
DECLARE @quarters int = DATEDIFF(minute, '1970-01-01', @utc) / 15;
DECLARE @other datetime2 = (
    SELECT MIN(DATEADD(second, near.since, CAST(near.instant AT TIME ZONE 'UTC' AT TIME ZONE same.name AS datetime2)))
    FROM (SELECT name FROM sys.time_zone_info WHERE current_utc_offset = RIGHT(CAST(@now AS nvarchar(40)), 6)) AS same
    CROSS JOIN (SELECT CAST(DATEADD(minute, 15 * (@quarters + nth), '1970-01-01') AS datetime2) AS instant, 0 AS since
                FROM (VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), (11), (12), (13)) AS ahead (nth)
                UNION ALL SELECT DATEADD(second, -@accepted, @utc), @accepted) AS near);
SET @other = COALESCE(@other, DATEADD(hour, -1, @clock));
SELECT MIN(clock) FROM (VALUES (@utc), (@clock), (@other)) AS clocks (clock)`

	sqlClockNow = `DECLARE @now datetimeoffset = SYSDATETIMEOFFSET();`

	// Fails with 229 where the table is there and the login may not read it, with 208
	// where there is none. OBJECT_ID hides the one like the other.
	sqlExists = `SELECT TOP (0) 1 FROM {table}`

	// Whether the login sees any row at all.
	sqlAnyRow = `SELECT COUNT(*) FROM (SELECT TOP (1) {expiration} FROM {table} WITH (NOLOCK)) AS one`

	// A row where the column is of the type that it was.
	sqlSameType = `SELECT * FROM sys.columns WHERE object_id = @oid AND name = '{expiration}' AND system_type_id = {typenumber}`

	// What the run relies on since it examined the table: that it is this very table,
	// what its column holds, and whether triggers run. It stands behind a delete and
	// ahead of its commit: until then the delete's own lock keeps others from
	// changing any of it. The right to delete and to read is the server's to check.
	// An index that is gone makes batches slow and no worse.
	sqlGuard = `
IF COALESCE(OBJECT_ID('{table}', 'U'), 0) <> @oid
   OR NOT EXISTS (` + sqlSameType + `)
   OR @triggered <> ` + sqlTriggered + `
    THROW 1164200553, 'the table has changed', 1;`

	// The same for a policy, ahead of the look that proves that nothing is left.
	sqlGuardPolicy = sqlFiltered + `
IF @filtered = 1 THROW 1164200553, 'the table has a policy', 1;`

	// What a check tells beyond the facts, in one round trip. Nothing in it is newer
	// than SQL Server 2012.
	sqlCheck = `
SELECT CASE WHEN @@VERSION LIKE 'Babelfish%' THEN 'Babelfish' ELSE 'SQL Server' END,
       CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(50)),
       CAST(SERVERPROPERTY('Edition') AS nvarchar(100)),
       COALESCE((SELECT CAST(d.compatibility_level AS int) FROM sys.databases AS d WHERE d.database_id = DB_ID()), 0),
       COALESCE((SELECT d.is_read_committed_snapshot_on FROM sys.databases AS d WHERE d.database_id = DB_ID()), 0),
       DATEDIFF(minute, GETUTCDATE(), GETDATE()),
       COALESCE(HAS_PERMS_BY_NAME('{table}', 'OBJECT', 'VIEW DEFINITION'), 0)`

	// How large another table is, and whether the login may read it.
	sqlSurvey = `
SELECT COALESCE((SELECT SUM(p.rows) FROM sys.partitions AS p WHERE p.object_id = t.object_id AND p.index_id IN (0, 1)), 0),
       COALESCE(HAS_PERMS_BY_NAME('{table}', 'OBJECT', 'SELECT'), 0)
FROM sys.tables AS t WHERE t.object_id = OBJECT_ID('{table}', 'U')`

	sqlEldest = `SELECT MIN({expiration}) FROM {table} WITH (NOLOCK)`

	// The triggers that run on DELETE: the name, and whether it stands in for it.
	sqlDeleteTriggers = `
SELECT QUOTENAME(t.name), CAST(t.is_instead_of_trigger AS int)
FROM sys.triggers AS t
WHERE t.parent_id = OBJECT_ID('{table}', 'U') AND t.is_disabled = 0
  AND EXISTS (SELECT * FROM sys.trigger_events AS e WHERE e.object_id = t.object_id AND e.type = 3)
ORDER BY t.name`

	// The statements that drop what leads to the table. A name that the login may not
	// see is NULL.
	sqlReferences = `
SELECT COALESCE('ALTER TABLE ' + QUOTENAME(OBJECT_SCHEMA_NAME(f.parent_object_id)) + '.' + QUOTENAME(OBJECT_NAME(f.parent_object_id))
     + ' DROP CONSTRAINT ' + QUOTENAME(f.name) + ';', f.name + ' of a table that the login may not see;')
FROM sys.foreign_keys AS f
WHERE f.referenced_object_id = OBJECT_ID('{table}', 'U') AND f.is_disabled = 0
ORDER BY f.name`

	// What makes each delete cost more than Ed-Fi's table has it do. Not for
	// Babelfish, where each table is a heap. Servers before 2022 have no ledger_type
	// (sys.tables): there the name is that of what stands around it.
	sqlBurdens = `
SELECT CASE WHEN ledger.kind = 3 THEN 'it is an append-only ledger table, which refuses each delete' ELSE 'it is a ledger table, so that deleted tokens stay in its history' END
FROM (SELECT 0 AS ledger_type) AS older
CROSS APPLY (SELECT ledger_type AS kind FROM sys.tables WHERE object_id = OBJECT_ID('{table}', 'U')) AS ledger
WHERE ledger.kind IN (2, 3)
UNION ALL
SELECT 'change tracking notes each delete' FROM sys.change_tracking_tables
WHERE object_id = OBJECT_ID('{table}', 'U')
UNION ALL
SELECT 'a full-text index is kept up with each delete' FROM sys.fulltext_indexes
WHERE object_id = OBJECT_ID('{table}', 'U')
UNION ALL
SELECT 'a columnstore index, ' + name + ', keeps deleted rows until it is rebuilt' FROM sys.indexes
WHERE object_id = OBJECT_ID('{table}', 'U') AND type IN (5, 6)
UNION ALL
SELECT 'it is a temporal table, so that deleted tokens stay in its history' FROM sys.tables
WHERE object_id = OBJECT_ID('{table}', 'U') AND temporal_type = 2
UNION ALL
SELECT 'change data capture records each delete' FROM sys.tables
WHERE object_id = OBJECT_ID('{table}', 'U') AND is_tracked_by_cdc = 1
UNION ALL
SELECT 'replication sends each delete to its subscribers' FROM sys.tables
WHERE object_id = OBJECT_ID('{table}', 'U') AND (is_published = 1 OR is_merge_published = 1 OR is_replicated = 1)
UNION ALL
SELECT 'it is a heap, which keeps its pages when rows are deleted: give it a clustered index' FROM sys.indexes
WHERE object_id = OBJECT_ID('{table}', 'U') AND type = 0
UNION ALL
SELECT 'an indexed view is kept up with each delete: ' + COALESCE(OBJECT_NAME(d.referencing_id), 'of a name that the login may not see')
FROM sys.sql_expression_dependencies AS d
WHERE d.referenced_id = OBJECT_ID('{table}', 'U')
  AND EXISTS (SELECT * FROM sys.indexes AS i WHERE i.object_id = d.referencing_id AND i.type = 1)`

	// Who holds locks on the table that a delete waits for, but our own connections. It
	// needs sqlSeesSessions (sys.dm_exec_sessions, sys.dm_tran_locks, "Permissions"). A
	// lock on a row or a page is on its partition, hobt_id, one on the table on its
	// object_id (sys.dm_tran_locks, "Resource details").
	sqlBlockers = `
SELECT TOP (3) s.session_id, COALESCE(s.program_name, '') + ' on ' + COALESCE(s.host_name, '')
     + ', whose last request began at ' + CONVERT(varchar(19), s.last_request_start_time, 126)
FROM sys.dm_exec_sessions AS s
WHERE s.session_id <> @@SPID AND COALESCE(s.program_name, '') <> APP_NAME()
  AND EXISTS (SELECT * FROM sys.dm_tran_locks AS l
              LEFT JOIN sys.partitions AS p ON p.hobt_id = l.resource_associated_entity_id
              WHERE l.request_session_id = s.session_id AND l.resource_database_id = DB_ID() AND l.request_status LIKE 'GRANT%'
                AND l.request_mode IN ('X', 'U', 'IX', 'SIX', 'Sch-M')
                AND (p.object_id = OBJECT_ID('{table}', 'U')
                     OR l.resource_type = 'OBJECT' AND l.resource_associated_entity_id = OBJECT_ID('{table}', 'U')))
ORDER BY s.last_request_start_time`

	// SQL Server 2022 and later ask for VIEW SERVER PERFORMANCE STATE, which VIEW SERVER
	// STATE has in it and older ones don't know: there it is NULL.
	sqlSeesSessions = `
SELECT CASE WHEN 1 IN (HAS_PERMS_BY_NAME(NULL, NULL, 'VIEW SERVER STATE'), HAS_PERMS_BY_NAME(NULL, NULL, 'VIEW SERVER PERFORMANCE STATE')) THEN 1 ELSE 0 END`

	// The pages of 8 kB of the table and its indexes.
	sqlPages = `
SELECT COALESCE(SUM(a.total_pages), 0)
FROM sys.partitions AS p
JOIN sys.allocation_units AS a ON a.container_id = p.partition_id
WHERE p.object_id = OBJECT_ID('{table}', 'U')`

	// Enabled jobs of SQL Server Agent that delete from the table, in any letter case and
	// with any quotes.
	sqlJobs = `
SELECT DISTINCT j.name
FROM msdb.dbo.sysjobs AS j
JOIN msdb.dbo.sysjobsteps AS s ON s.job_id = j.job_id
WHERE j.enabled = 1
  AND REPLACE(REPLACE(REPLACE(s.command, '[', ''), ']', ''), '"', '') COLLATE Latin1_General_CI_AS LIKE @pattern
ORDER BY j.name`

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
SELECT COUNT_BIG(*) FROM {table} WITH (NOLOCK)
WHERE {expiration} >= @from AND {expiration} < @to`

	// How many tokens expire after @floor: some thousands of those that do last, for
	// tokens that are issued come there. It locks nothing and waits for nothing.
	sqlIssued = `
SELECT COUNT(*) FROM (SELECT TOP (@most) {expiration} FROM {table} WITH (NOLOCK, NOWAIT)
                      WHERE {expiration} > @floor ORDER BY {expiration} DESC) AS issued`

	// Where to count from, so that there are so many of them.
	sqlIssuedFloor = `
SELECT MIN({expiration}), COUNT(*) FROM (SELECT TOP (@most) {expiration} FROM {table} WITH (NOLOCK, NOWAIT)
                                       WHERE {expiration} > @floor ORDER BY {expiration} DESC) AS issued`

	// Expiration windows.
	//
	// A look passes over rows that others have locked; where there are no others,
	// it waits for those: only then it proves that nothing is left. The oldest row
	// may be one that it passed over, so that is looked for without locks as well.
	sqlOldest = `
DECLARE @seen {type} = (
    SELECT MIN({expiration}) FROM {table} WITH (NOLOCK)
    WHERE {expiration} >= @from AND {expiration} < @to);
DECLARE @free {type} = (
    SELECT MIN({expiration}) FROM {table} WITH (READCOMMITTEDLOCK, READPAST)
    WHERE {expiration} >= @from AND {expiration} < @to);
IF @free IS NULL SET @free = (
    SELECT MIN({expiration}) FROM {table}
    WHERE {expiration} >= @from AND {expiration} < @to);
SELECT CASE WHEN @seen < @free THEN @seen ELSE @free END, @free`

	// The same where no index leads to it: one reading of the table does, unless it
	// finds nothing.
	sqlOldestOfAll = `
DECLARE @seen {type} = (
    SELECT MIN({expiration}) FROM {table} WITH (NOLOCK)
    WHERE {expiration} >= @from AND {expiration} < @to);
IF @seen IS NULL SET @seen = (
    SELECT MIN({expiration}) FROM {table}
    WHERE {expiration} >= @from AND {expiration} < @to);
SELECT @seen, @seen`

	// The first rows of the batches of @n rows after the first one, of @total rows, and
	// the row before each.
	sqlEnds = `
SELECT {expiration}, previous
FROM (SELECT TOP (@total) {expiration}, LAG({expiration}) OVER (ORDER BY {expiration}) AS previous, ROW_NUMBER() OVER (ORDER BY {expiration}) AS place
      FROM {table} WITH (READCOMMITTEDLOCK, READPAST)
      WHERE {expiration} >= @from AND {expiration} < @to
      ORDER BY {expiration}) AS ordered
WHERE place > 1 AND (place - 1) % @n = 0
ORDER BY place`

	// Rows that came in since the batch was cut, or were locked then, must not lead
	// to a lock on the table: MostBatch says when it would. The plan is made for few
	// rows: one that was made for most of a small table would scan the table, for
	// each batch of it when it is large.
	//
	// A window that still has rows then has too many, or something puts them back:
	// the error undoes the batch, and it is deleted again with proof.
	sqlDelete = `
DECLARE @began datetime2 = SYSUTCDATETIME();
DELETE TOP (@most) FROM {table} WITH (ROWLOCK)
WHERE {expiration} >= @from AND {expiration} < @to
OPTION (OPTIMIZE FOR (@from = '17530101', @to = '17530102'));
SET @deleted = @@ROWCOUNT;` + sqlGuard + `
IF EXISTS (SELECT * FROM {table} WITH (READCOMMITTEDLOCK, READPAST)
           WHERE {expiration} >= @from AND {expiration} < @to)
    THROW 1349874279, 'rows are left', 1;
SET @took = DATEDIFF(microsecond, @began, SYSUTCDATETIME())`

	// How many rows a window holds, whoever has locked them: read ahead of a delete
	// with proof.
	sqlHeld = `
SELECT COUNT(*) FROM {table} WITH (NOLOCK)
WHERE {expiration} >= @from AND {expiration} < @to`

	// A delete that is proved, the first of each connection and each one while a
	// trigger may run: where a trigger stands in for DELETE, or puts rows back,
	// @@ROWCOUNT counts rows that are still there. So the rows that go are locked
	// first, then counted by their Ids before and after, with others that share one,
	// and the window's rows as well, for a trigger that puts them back under other
	// Ids. The least of all is what has gone. The Ids stay on the server.
	sqlDeleteVerifying = sqlDoomed + sqlDeleteDoomed

	sqlDoomed = `
DECLARE @began datetime2 = SYSUTCDATETIME(), @before bigint;
DECLARE @doomed TABLE ({key} {keytype} NOT NULL);
INSERT INTO @doomed
SELECT TOP (@most) {key} FROM {table} WITH (ROWLOCK, UPDLOCK)
WHERE {expiration} >= @from AND {expiration} < @to
OPTION (OPTIMIZE FOR (@from = '17530101', @to = '17530102'));`

	sqlDeleteDoomed = `
SET @before = (SELECT COUNT(*) FROM {table} AS token WHERE token.{key} IN (SELECT doomed.{key} FROM @doomed AS doomed));
DELETE TOP (@most) FROM {table} WITH (ROWLOCK)
WHERE {expiration} >= @from AND {expiration} < @to AND {key} IN (SELECT doomed.{key} FROM @doomed AS doomed);
SET @deleted = @@ROWCOUNT;` + sqlGuard + `
SET @before = @before - (SELECT COUNT(*) FROM {table} AS token WHERE token.{key} IN (SELECT doomed.{key} FROM @doomed AS doomed));
IF @before < @deleted SET @deleted = @before;
SET @before = @held - (
    SELECT COUNT(*) FROM {table} WITH (NOLOCK)
    WHERE {expiration} >= @from AND {expiration} < @to);
IF @before < @deleted SET @deleted = @before;
IF @deleted < 0 SET @deleted = 0;
SET @took = DATEDIFF(microsecond, @began, SYSUTCDATETIME())`

	// Ranges of the clustered key, where expirations don't tell rows apart. Each
	// of the statements above then has one of these for its window. A range ends
	// before @upper, the last one with it. Only the server knows the order of its
	// keys; those that come to the client, to say where a range ends, are of rows
	// that have expired: no live token is ever read.
	sqlWindow = `{expiration} >= @from AND {expiration} < @to`

	sqlByKey = sqlWindow + ` AND {key} >= @lower AND {key} <= @upper AND ({key} < @upper OR @last = 1)`

	// The same where an index on expiration leads to the keys of one expiration,
	// in their order.
	sqlByKeyOfOne = `{expiration} = @from AND {expiration} < @to AND {key} >= @lower AND {key} <= @upper AND ({key} < @upper OR @last = 1)`

	// Between which numbers the keys are; any will do where there are none.
	sqlKeyRange = `SELECT COALESCE(MIN({key}), 0), COALESCE(MAX({key}), 0) FROM {table} WITH (NOLOCK)`

	sqlEndByKey = `
SELECT {key} FROM {table} WITH (READCOMMITTEDLOCK, READPAST)
WHERE {expiration} >= @from AND {expiration} < @to
ORDER BY {key} OFFSET @n ROWS FETCH NEXT 1 ROWS ONLY`

	// Fails with noStatistics where the table has a row-level security policy, which
	// only those see who have VIEW DEFINITION on it: "in order to view a statistics
	// object for a table with a row-level security policy, the user must own the table
	// or" be an administrator (Row-level security, "Cross-feature compatibility"). Any
	// other login that may SELECT may view it (DBCC SHOW_STATISTICS, "Permissions").
	sqlStatistics = `
DECLARE @table nvarchar(300) = N'{table}', @statistics sysname = (
    SELECT TOP (1) s.name
    FROM sys.stats AS s
    JOIN sys.stats_columns AS k ON k.object_id = s.object_id AND k.stats_id = s.stats_id AND k.stats_column_id = 1
    JOIN sys.columns AS c ON c.object_id = k.object_id AND c.column_id = k.column_id
    WHERE s.object_id = OBJECT_ID('{table}', 'U')
    ORDER BY CASE c.name WHEN '{expiration}' THEN 0 ELSE 1 END, s.stats_id);
IF @statistics IS NOT NULL DBCC SHOW_STATISTICS (@table, @statistics) WITH STAT_HEADER, NO_INFOMSGS`

	// A delete that is tried and undone, in a transaction that begins and ends within
	// one batch. It begins a thousand times, so that a COMMIT in a trigger out of sight
	// ends nothing: "When @@TRANCOUNT is greater than 1, COMMIT TRANSACTION decrements
	// @@TRANCOUNT only by 1 and the transaction stays active" (COMMIT TRANSACTION).
	sqlRehearse = `
WHILE @@TRANCOUNT < 1000 BEGIN TRANSACTION;` + sqlDoomed + `
SET @rows = (SELECT COUNT(*) FROM @doomed);` + sqlMayCommit + sqlDeleteDoomed + `;
IF @@TRANCOUNT <> 1000 THROW 1298374615, 'a trigger ends the transaction', 1;
ROLLBACK TRANSACTION`

	// Refuses to try a delete that might not be undone: with a trigger whose text the
	// login can't see, or has COMMIT in it, or runs what may have. The rows are locked
	// by now, so that no trigger can come any more.
	sqlMayCommit = `
DECLARE @trigger nvarchar(300) = (
    SELECT TOP (1) QUOTENAME(t.name)
    FROM sys.triggers AS t
    WHERE t.parent_id = @oid AND t.is_disabled = 0
      AND EXISTS (SELECT * FROM sys.trigger_events AS e WHERE e.object_id = t.object_id AND e.type = 3)
      AND (OBJECT_DEFINITION(t.object_id) IS NULL
           OR OBJECT_DEFINITION(t.object_id) COLLATE Latin1_General_CI_AS LIKE N'%COMMIT%'
           OR OBJECT_DEFINITION(t.object_id) COLLATE Latin1_General_CI_AS LIKE N'%EXEC%')
    ORDER BY t.name);
IF @trigger IS NULL AND @triggered = 1 AND NOT EXISTS (SELECT * FROM sys.triggers AS t WHERE t.parent_id = @oid)
    SET @trigger = N'that the login may not see';
IF @trigger IS NOT NULL THROW 1298374616, @trigger, 1;`

	sqlVersion = `SELECT CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(50)) AS version`

	// What a rehearsal that failed has not undone.
	sqlUndo = `IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION`
)
