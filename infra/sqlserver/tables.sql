-- The rights of the purge on the tables that TABLES has, and on no other of the four. Run
-- it after role.sql, in each database that has one of them:
--
--     sqlcmd -b -S host -U admin -d EdFi_Admin -v TABLES="ClientAccessTokens,adminapi.Tokens" -i infra/sqlserver/tables.sql
--
-- In SQL Server Management Studio it needs SQLCMD mode (menu Query), and ahead of it a
-- line  :setvar TABLES "...". It can be run again.

-- A name that is none of the four, or no list at all, as without SQLCMD mode, changes
-- nothing.
DECLARE @tables nvarchar(max) = N',' + REPLACE(REPLACE(N'$(TABLES)', N' ', N''), N',', N',,') + N',';
DECLARE @others nvarchar(max) = REPLACE(REPLACE(REPLACE(REPLACE(@tables,
    N',ClientAccessTokens,', N''), N',adminapi.Tokens,', N''), N',dmscs.OpenIddictToken,', N''), N',ClientAccessTokenLogs,', N'');
IF @others <> N''
    RAISERROR (N'TABLES must hold names of tables: ClientAccessTokens, adminapi.Tokens, dmscs.OpenIddictToken, ClientAccessTokenLogs. No right was changed. In Management Studio this needs SQLCMD mode.', 16, 1);
ELSE
BEGIN
    IF OBJECT_ID(N'dbo.ClientAccessTokens', 'U') IS NOT NULL
        IF @tables LIKE N'%,ClientAccessTokens,%'
            GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO edfi_token_purger;
        ELSE
            REVOKE SELECT, DELETE ON dbo.ClientAccessTokens FROM edfi_token_purger;
    IF OBJECT_ID(N'adminapi.Tokens', 'U') IS NOT NULL
        IF @tables LIKE N'%,adminapi.Tokens,%'
            GRANT SELECT, DELETE ON adminapi.Tokens TO edfi_token_purger;
        ELSE
            REVOKE SELECT, DELETE ON adminapi.Tokens FROM edfi_token_purger;
    IF OBJECT_ID(N'dmscs.OpenIddictToken', 'U') IS NOT NULL
        IF @tables LIKE N'%,dmscs.OpenIddictToken,%'
            GRANT SELECT, DELETE ON dmscs.OpenIddictToken TO edfi_token_purger;
        ELSE
            REVOKE SELECT, DELETE ON dmscs.OpenIddictToken FROM edfi_token_purger;
    IF OBJECT_ID(N'dbo.ClientAccessTokenLogs', 'U') IS NOT NULL
        IF @tables LIKE N'%,ClientAccessTokenLogs,%'
            GRANT SELECT, DELETE ON dbo.ClientAccessTokenLogs TO edfi_token_purger;
        ELSE
            REVOKE SELECT, DELETE ON dbo.ClientAccessTokenLogs FROM edfi_token_purger;
    IF OBJECT_ID(N'dbo.ClientAccessTokens', 'U') IS NULL AND OBJECT_ID(N'adminapi.Tokens', 'U') IS NULL
       AND OBJECT_ID(N'dmscs.OpenIddictToken', 'U') IS NULL AND OBJECT_ID(N'dbo.ClientAccessTokenLogs', 'U') IS NULL
        RAISERROR (N'No right was granted: this database has none of the tables.', 16, 1);
END;
GO
