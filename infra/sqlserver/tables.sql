-- The rights of the purge on the tables that TABLES has, and on no other of the four. Run
-- it after role.sql, in each database that has one of them:
--
--     sqlcmd -b -S host -U admin -d EdFi_Admin -v TABLES="ClientAccessTokens,adminapi.Tokens" -i infra/sqlserver/tables.sql
--
-- In SQL Server Management Studio it needs SQLCMD mode (menu Query), and ahead of it a
-- line  :setvar TABLES "...". It can be run again.

IF OBJECT_ID(N'dbo.ClientAccessTokens', 'U') IS NOT NULL
    IF N',$(TABLES),' LIKE N'%,ClientAccessTokens,%'
        GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO edfi_token_purger;
    ELSE
        REVOKE SELECT, DELETE ON dbo.ClientAccessTokens FROM edfi_token_purger;
IF OBJECT_ID(N'adminapi.Tokens', 'U') IS NOT NULL
    IF N',$(TABLES),' LIKE N'%,adminapi.Tokens,%'
        GRANT SELECT, DELETE ON adminapi.Tokens TO edfi_token_purger;
    ELSE
        REVOKE SELECT, DELETE ON adminapi.Tokens FROM edfi_token_purger;
IF OBJECT_ID(N'dmscs.OpenIddictToken', 'U') IS NOT NULL
    IF N',$(TABLES),' LIKE N'%,dmscs.OpenIddictToken,%'
        GRANT SELECT, DELETE ON dmscs.OpenIddictToken TO edfi_token_purger;
    ELSE
        REVOKE SELECT, DELETE ON dmscs.OpenIddictToken FROM edfi_token_purger;
IF OBJECT_ID(N'dbo.ClientAccessTokenLogs', 'U') IS NOT NULL
    IF N',$(TABLES),' LIKE N'%,ClientAccessTokenLogs,%'
        GRANT SELECT, DELETE ON dbo.ClientAccessTokenLogs TO edfi_token_purger;
    ELSE
        REVOKE SELECT, DELETE ON dbo.ClientAccessTokenLogs FROM edfi_token_purger;
IF OBJECT_ID(N'dbo.ClientAccessTokens', 'U') IS NULL AND OBJECT_ID(N'adminapi.Tokens', 'U') IS NULL
   AND OBJECT_ID(N'dmscs.OpenIddictToken', 'U') IS NULL AND OBJECT_ID(N'dbo.ClientAccessTokenLogs', 'U') IS NULL
    RAISERROR (N'No right was granted: this database has none of the tables.', 16, 1);
GO
