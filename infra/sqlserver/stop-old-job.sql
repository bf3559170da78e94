-- Stops the jobs of SQL Server Agent that delete from Ed-Fi's ClientAccessTokens,
-- now that this purge does. Run it as a sysadmin, or as the jobs' owner with the
-- right to read msdb.dbo.sysjobs and sysjobsteps:
--
--     sqlcmd -b -S host,1433 -U admin -i infra/sqlserver/stop-old-job.sql
--
-- It only disables, it can be run again, and it says what it did. On RDS only a
-- job's owner may disable it, even for the master user: such a job is named, with
-- what to do, and the script ends with an error.
-- A job stops with all its steps: where it does more, move that elsewhere. A job
-- that deletes through a procedure of yours is not recognized: disable it by hand.

SET NOCOUNT ON;

DECLARE @job uniqueidentifier, @name sysname, @enabled tinyint, @found int = 0, @failed int = 0, @why nvarchar(2048);

DECLARE jobs CURSOR LOCAL STATIC FOR
    SELECT j.job_id, j.name, j.enabled
    FROM msdb.dbo.sysjobs AS j
    WHERE EXISTS (
        SELECT 1 FROM msdb.dbo.sysjobsteps AS s
        WHERE s.job_id = j.job_id
          AND s.command COLLATE Latin1_General_CI_AS LIKE N'%DELETE%ClientAccessTokens%')
    ORDER BY j.name;

OPEN jobs;
FETCH NEXT FROM jobs INTO @job, @name, @enabled;
WHILE @@FETCH_STATUS = 0
BEGIN
    SET @found += 1;
    IF @enabled = 1
    BEGIN
        SET @why = N'';
        BEGIN TRY
            EXEC msdb.dbo.sp_update_job @job_id = @job, @enabled = 0;
        END TRY
        BEGIN CATCH
            SET @why = ERROR_MESSAGE();
        END CATCH;
        IF EXISTS (SELECT 1 FROM msdb.dbo.sysjobs WHERE job_id = @job AND enabled = 1)
        BEGIN
            SET @failed += 1;
            PRINT N'job "' + @name + N'" is still enabled: ' + @why;
        END
        ELSE
            PRINT N'disabled job "' + @name + N'"';
    END
    ELSE
        PRINT N'job "' + @name + N'" is disabled already';
    FETCH NEXT FROM jobs INTO @job, @name, @enabled;
END;
CLOSE jobs;
DEALLOCATE jobs;

IF @found = 0
    PRINT N'no job that this login may see deletes from ClientAccessTokens';
IF @failed > 0
    RAISERROR (N'Jobs that are still enabled: %d. Run this as their owner, whom sp_help_job shows; or as that owner EXEC msdb.dbo.sp_update_job @job_name = N''...'', @enabled = 0.', 16, 1, @failed);
