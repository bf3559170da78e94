package sqlserver

const (
	// Fails with noStatistics where the table has a row-level security policy, which
	// only those see who have VIEW DEFINITION on it: "in order to view a statistics
	// object for a table with a row-level security policy, the user must own the table
	// or" be an administrator (Row-level security, "Cross-feature compatibility"). Any
	// other login that may SELECT may view it (DBCC SHOW_STATISTICS, "Permissions").
	sqlStatistics = `
DECLARE @table nvarchar(300) = N'dbo.ClientAccessTokens', @statistics sysname = (
    SELECT TOP (1) s.name
    FROM sys.stats AS s
    JOIN sys.stats_columns AS k ON k.object_id = s.object_id AND k.stats_id = s.stats_id AND k.stats_column_id = 1
    JOIN sys.columns AS c ON c.object_id = k.object_id AND c.column_id = k.column_id
    WHERE s.object_id = OBJECT_ID('dbo.ClientAccessTokens', 'U')
    ORDER BY CASE c.name WHEN 'Expiration' THEN 0 ELSE 1 END, s.stats_id);
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
