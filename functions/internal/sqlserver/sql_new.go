package sqlserver

const (
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

	// What a rehearsal that failed has not undone.
	sqlUndo = `IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION`
)
