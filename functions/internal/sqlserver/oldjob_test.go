package sqlserver

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/testing/edfi"
)

func TestTheOldJobsStopAndNoOthers(t *testing.T) {
	needServer(t)
	script, err := os.ReadFile("../../../infra/sqlserver/stop-old-job.sql")
	if err != nil {
		t.Fatal(err)
	}
	msdb := connect(t, "msdb")
	if strings.Contains(one[string](t, msdb, "SELECT @@VERSION"), "Babelfish") { // it has no Agent: what is read and called of it
		for _, statement := range []string{
			"CREATE TABLE dbo.sysjobs (job_id uniqueidentifier DEFAULT NEWID(), name sysname, enabled tinyint)",
			"CREATE TABLE dbo.sysjobsteps (job_id uniqueidentifier, command nvarchar(max) COLLATE Latin1_General_CS_AS)", // as a case-sensitive server
			"CREATE PROCEDURE dbo.sp_update_job @job_id uniqueidentifier, @enabled tinyint AS IF EXISTS (SELECT * FROM msdb.dbo.sysjobs WHERE job_id = @job_id AND name LIKE '%other%') THROW 50007, 'Only the owner of a job can do that.', 1; UPDATE msdb.dbo.sysjobs SET enabled = @enabled WHERE job_id = @job_id",
			"CREATE PROCEDURE dbo.sp_add_job @job_name sysname, @enabled tinyint AS INSERT INTO msdb.dbo.sysjobs (name, enabled) VALUES (@job_name, @enabled)",
			"CREATE PROCEDURE dbo.sp_add_jobstep @job_name sysname, @step_name sysname, @command nvarchar(max) AS INSERT INTO msdb.dbo.sysjobsteps SELECT job_id, @command FROM msdb.dbo.sysjobs WHERE name = @job_name",
			"CREATE PROCEDURE dbo.sp_delete_job @job_name sysname AS DELETE FROM msdb.dbo.sysjobs WHERE name = @job_name",
		} {
			must(t, msdb, statement)
		}
		t.Cleanup(func() {
			must(t, connect(t, "msdb"), "DROP PROCEDURE dbo.sp_update_job, dbo.sp_add_job, dbo.sp_add_jobstep, dbo.sp_delete_job")
			must(t, connect(t, "msdb"), "DROP TABLE dbo.sysjobs, dbo.sysjobsteps")
		})
	}
	prefix := fmt.Sprintf("edfi %x ", started)
	for _, job := range []struct {
		name, command string
		enabled       int
	}{
		{"a purge", "DELETE FROM ClientAccessTokens WHERE Expiration < GETUTCDATE()", 1},
		{"b backup", "BACKUP DATABASE EdFi_Admin TO DISK = N'nul'", 1},
		{"c off", "delete from [dbo].[clientaccesstokens]", 0},
		{"d small", "delete from [dbo].[clientaccesstokens]", 1},
	} {
		must(t, msdb, "EXEC msdb.dbo.sp_add_job @job_name = @p1, @enabled = @p2", prefix+job.name, job.enabled)
		must(t, msdb, "EXEC msdb.dbo.sp_add_jobstep @job_name = @p1, @step_name = N'step', @command = @p2", prefix+job.name, job.command)
		t.Cleanup(func() { must(t, connect(t, "msdb"), "EXEC msdb.dbo.sp_delete_job @job_name = @p1", prefix+job.name) })
	}
	seen := func() []string {
		return column[string](t, msdb, "SELECT name FROM msdb.dbo.sysjobs WHERE enabled = 1 AND name LIKE "+quote(prefix+"%")+" ORDER BY name")
	}
	if jobs := column[string](t, msdb, sqlJobs, sql.Named("pattern", cleans(purge.ClientAccessTokens))); !slices.Contains(jobs, prefix+"a purge") || !slices.Contains(jobs, prefix+"d small") || slices.Contains(jobs, prefix+"b backup") || slices.Contains(jobs, prefix+"c off") {
		t.Errorf("a check sees %q", jobs)
	}
	for range 2 { // it can be run again
		if err := edfi.ExecBatches(context.Background(), msdb, string(script)); err != nil {
			t.Fatal(err)
		}
		if left := seen(); !slices.Equal(left, []string{prefix + "b backup"}) {
			t.Errorf("enabled: %q", left)
		}
	}
	// On RDS nobody but its owner may disable a job: it is not said to be.
	if !strings.Contains(one[string](t, msdb, "SELECT @@VERSION"), "Babelfish") {
		return // whoever runs this is everybody's administrator
	}
	name := prefix + "e other"
	must(t, msdb, "EXEC msdb.dbo.sp_add_job @job_name = @p1, @enabled = 1", name)
	must(t, msdb, "EXEC msdb.dbo.sp_add_jobstep @job_name = @p1, @step_name = N'step', @command = N'DELETE FROM ClientAccessTokens'", name)
	t.Cleanup(func() { must(t, connect(t, "msdb"), "EXEC msdb.dbo.sp_delete_job @job_name = @p1", name) })
	if err := edfi.ExecBatches(context.Background(), msdb, string(script)); err == nil || !contains(err.Error(), "still enabled: 1", "owner") {
		t.Errorf("%v", err)
	}
}
