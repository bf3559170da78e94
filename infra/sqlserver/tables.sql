-- The rights of the purge on the tables that TABLES has, ClientAccessTokens among them or
-- not. Run it after role.sql, in each database that has one of them:
--
--     sqlcmd -b -S host -U admin -d EdFi_Admin -v TABLES="ClientAccessTokens,adminapi.Tokens" -i infra/sqlserver/tables.sql
--
-- In SQL Server Management Studio it needs SQLCMD mode (menu Query), and ahead of it a
-- line  :setvar TABLES "...". It can be run again.

IF N',$(TABLES),' LIKE N'%,ClientAccessTokens,%' AND OBJECT_ID(N'dbo.ClientAccessTokens', 'U') IS NOT NULL
    GRANT SELECT, DELETE ON dbo.ClientAccessTokens TO edfi_token_purger;
IF N',$(TABLES),' LIKE N'%,adminapi.Tokens,%' AND OBJECT_ID(N'adminapi.Tokens', 'U') IS NOT NULL
    GRANT SELECT, DELETE ON adminapi.Tokens TO edfi_token_purger;
IF N',$(TABLES),' LIKE N'%,dmscs.OpenIddictToken,%' AND OBJECT_ID(N'dmscs.OpenIddictToken', 'U') IS NOT NULL
    GRANT SELECT, DELETE ON dmscs.OpenIddictToken TO edfi_token_purger;
IF N',$(TABLES),' LIKE N'%,ClientAccessTokenLogs,%' AND OBJECT_ID(N'dbo.ClientAccessTokenLogs', 'U') IS NOT NULL
    GRANT SELECT, DELETE ON dbo.ClientAccessTokenLogs TO edfi_token_purger;
IF OBJECT_ID(N'dbo.ClientAccessTokens', 'U') IS NULL AND OBJECT_ID(N'adminapi.Tokens', 'U') IS NULL
   AND OBJECT_ID(N'dmscs.OpenIddictToken', 'U') IS NULL AND OBJECT_ID(N'dbo.ClientAccessTokenLogs', 'U') IS NULL
    RAISERROR (N'No right was granted: this database has none of the tables.', 16, 1);
GO
