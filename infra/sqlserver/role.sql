-- The login of the purge, with the least rights that it needs. Run it in each
-- Ed-Fi admin database, as an administrator; on RDS, as the master user:
--
--     export PURGE_PASSWORD='...'
--     sqlcmd -S host -U admin -d EdFi_Admin -i infra/sqlserver/role.sql
--
-- It can be run again: a login that is there keeps its password, and a user
-- whose database was restored on another server finds its login. A ' in the
-- password is written twice.

IF NOT EXISTS (SELECT * FROM sys.server_principals WHERE name = N'edfi_token_purge')
    CREATE LOGIN edfi_token_purge WITH PASSWORD = N'$(PURGE_PASSWORD)';
GO

IF NOT EXISTS (SELECT * FROM sys.database_principals WHERE name = N'edfi_token_purge')
    CREATE USER edfi_token_purge FOR LOGIN edfi_token_purge;
ELSE IF NOT EXISTS (SELECT * FROM sys.database_principals AS u JOIN sys.server_principals AS l ON l.sid = u.sid
                    WHERE u.name = N'edfi_token_purge')
    ALTER USER edfi_token_purge WITH LOGIN = edfi_token_purge;
GO

-- Enough for every purge. SELECT must be on the whole table: without it many
-- rows that share one expiration could leave in a single statement only, and
-- from 5,000 rows on that locks the table.
GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO edfi_token_purge;
GO
