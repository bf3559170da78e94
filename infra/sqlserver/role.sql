-- The login of the purge, with the least rights that it needs. Run it in each
-- Ed-Fi admin database, as an administrator; on RDS, as the master user:
--
--     export PURGE_PASSWORD='...'
--     sqlcmd -b -S host -U admin -d EdFi_Admin -i infra/sqlserver/role.sql
--
-- In SQL Server Management Studio it needs SQLCMD mode (menu Query), and ahead of
-- it a line  :setvar PURGE_PASSWORD "...". Without that mode it stops before
-- anything is created.
--
-- It can be run again: a login that is there keeps its password, and a user
-- whose database was restored on another server finds its login. A ' in the
-- password is written twice.

-- Each part below looks anew: a client may go on after an error. With -b sqlcmd
-- ends, and tells its caller.
IF N'$(PURGE_PASSWORD)' LIKE N'$' + N'(%' OR N'$(PURGE_PASSWORD)' = N''
    RAISERROR (N'PURGE_PASSWORD is not set: run this in SQLCMD mode, with :setvar PURGE_PASSWORD "..." ahead of it, or by sqlcmd, as its first lines say. Nothing was created.', 16, 1);
ELSE IF NOT EXISTS (SELECT * FROM sys.server_principals WHERE name = N'edfi_token_purge')
    CREATE LOGIN edfi_token_purge WITH PASSWORD = N'$(PURGE_PASSWORD)';
GO

IF N'$(PURGE_PASSWORD)' LIKE N'$' + N'(%' OR N'$(PURGE_PASSWORD)' = N''
    RAISERROR (N'No user was created.', 16, 1);
ELSE IF NOT EXISTS (SELECT * FROM sys.database_principals WHERE name = N'edfi_token_purge')
    CREATE USER edfi_token_purge FOR LOGIN edfi_token_purge;
ELSE IF NOT EXISTS (SELECT * FROM sys.database_principals AS u JOIN sys.server_principals AS l ON l.sid = u.sid
                    WHERE u.name = N'edfi_token_purge')
    ALTER USER edfi_token_purge WITH LOGIN = edfi_token_purge;
GO

-- The rights are a role's, so that both users of a secret that rotates between two
-- have them. Run this again once the second one has been made.
IF N'$(PURGE_PASSWORD)' LIKE N'$' + N'(%' OR N'$(PURGE_PASSWORD)' = N''
    RAISERROR (N'No role was created.', 16, 1);
ELSE IF NOT EXISTS (SELECT * FROM sys.database_principals WHERE name = N'edfi_token_purger')
    CREATE ROLE edfi_token_purger;
GO

IF N'$(PURGE_PASSWORD)' LIKE N'$' + N'(%' OR N'$(PURGE_PASSWORD)' = N''
    RAISERROR (N'No right was granted.', 16, 1);
ELSE
    ALTER ROLE edfi_token_purger ADD MEMBER edfi_token_purge;
GO

IF N'$(PURGE_PASSWORD)' LIKE N'$' + N'(%' OR N'$(PURGE_PASSWORD)' = N''
    RAISERROR (N'No second user was created.', 16, 1);
ELSE IF EXISTS (SELECT * FROM sys.server_principals WHERE name = N'edfi_token_purge_clone')
   AND NOT EXISTS (SELECT * FROM sys.database_principals WHERE name = N'edfi_token_purge_clone')
    CREATE USER edfi_token_purge_clone FOR LOGIN edfi_token_purge_clone;
GO

IF N'$(PURGE_PASSWORD)' LIKE N'$' + N'(%' OR N'$(PURGE_PASSWORD)' = N''
    RAISERROR (N'No right was granted.', 16, 1);
ELSE IF EXISTS (SELECT * FROM sys.database_principals WHERE name = N'edfi_token_purge_clone')
    ALTER ROLE edfi_token_purger ADD MEMBER edfi_token_purge_clone;
GO

-- Enough for every purge. SELECT must be on the whole table: without it many
-- rows that share one expiration could leave in a single statement only, and
-- from 5,000 locks on that locks the table.
IF N'$(PURGE_PASSWORD)' LIKE N'$' + N'(%' OR N'$(PURGE_PASSWORD)' = N''
    RAISERROR (N'No right was granted.', 16, 1);
ELSE IF OBJECT_ID(N'dbo.ClientAccessTokens') IS NOT NULL
    GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO edfi_token_purger;
ELSE IF OBJECT_ID(N'adminapi.Tokens') IS NOT NULL OR OBJECT_ID(N'dmscs.OpenIddictToken') IS NOT NULL
    PRINT N'This database has other tables of tokens: infra/sqlserver/tables.sql grants the rights on them.';
ELSE
    RAISERROR (N'No right was granted: this database has no table dbo.ClientAccessTokens.', 16, 1);
GO
