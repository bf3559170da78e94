-- Stops the database jobs of pgAgent and pg_cron that delete from Ed-Fi's
-- ClientAccessTokens, now that this purge does. Run it in the database in which
-- the scheduler keeps its jobs, as the jobs' owner or an administrator:
--
--     psql --dbname postgres --file infra/postgres/stop-old-job.sql
--
-- It only disables, it can be run again, and it says what it did.
-- Of a pgAgent job that does more, the other steps stay enabled. A job that
-- deletes through a function of yours is not recognized: disable it by hand.

DO $$
DECLARE
    -- "delete", then the table's name, in any letter case and with anything between.
    deletes CONSTANT text := '\mdelete\M.*\mclientaccesstokens\M';
    old record;
BEGIN
    IF to_regclass('pgagent.pga_job') IS NULL THEN
        RAISE NOTICE 'pgAgent: not in database %', current_database();
    ELSE
        FOR old IN
            SELECT j.jobid, j.jobname, s.jstid, s.jstname, j.jobenabled AND s.jstenabled AS enabled
            FROM pgagent.pga_job j
            JOIN pgagent.pga_jobstep s ON s.jstjobid = j.jobid
            WHERE s.jstcode ~* deletes
            ORDER BY j.jobid, s.jstid
        LOOP
            IF old.enabled THEN
                UPDATE pgagent.pga_jobstep SET jstenabled = false WHERE jstid = old.jstid;
                UPDATE pgagent.pga_job SET jobenabled = false
                WHERE jobid = old.jobid
                  AND NOT EXISTS (SELECT FROM pgagent.pga_jobstep WHERE jstjobid = old.jobid AND jstenabled);
                RAISE NOTICE 'pgAgent: disabled step "%" of job % "%"%', old.jstname, old.jobid, old.jobname,
                    CASE WHEN FOUND THEN ', and the job, which has no other' ELSE '; the job has other steps' END;
            ELSE
                RAISE NOTICE 'pgAgent: step "%" of job % "%" is disabled already', old.jstname, old.jobid, old.jobname;
            END IF;
        END LOOP;
        IF NOT FOUND THEN
            RAISE NOTICE 'pgAgent: no job here deletes from clientaccesstokens';
        END IF;
    END IF;

    IF to_regclass('cron.job') IS NULL THEN
        RAISE NOTICE 'pg_cron: not in database %', current_database();
    ELSE
        -- Who is no superuser sees here the jobs of this login alone.
        FOR old IN
            SELECT jobid, database, active FROM cron.job WHERE command ~* deletes ORDER BY jobid
        LOOP
            IF NOT old.active THEN
                RAISE NOTICE 'pg_cron: job % in database % is disabled already', old.jobid, old.database;
                CONTINUE;
            END IF;
            IF to_regprocedure('cron.alter_job(bigint, text, text, text, text, boolean)') IS NOT NULL THEN
                PERFORM cron.alter_job(job_id := old.jobid, active := false);
            ELSE -- before pg_cron 1.4
                UPDATE cron.job SET active = false WHERE jobid = old.jobid;
            END IF;
            RAISE NOTICE 'pg_cron: disabled job % in database %', old.jobid, old.database;
        END LOOP;
        IF NOT FOUND THEN
            RAISE NOTICE 'pg_cron: no job here deletes from clientaccesstokens';
        END IF;
    END IF;
END
$$;
