-- The tables beside ClientAccessTokens that grow for ever, as their products have them on
-- SQL Server.
CREATE SCHEMA adminapi;
GO

CREATE TABLE adminapi.Tokens (
    Id int IDENTITY (1, 1) NOT NULL PRIMARY KEY,
    ApplicationId int NULL,
    ExpirationDate datetime NULL,
    Payload nvarchar(max) NULL,
    Status nvarchar(50) NULL,
    Type nvarchar(50) NULL
);
GO

CREATE SCHEMA dmscs;
GO

CREATE TABLE dmscs.OpenIddictToken (
    Id uniqueidentifier NOT NULL DEFAULT NEWID() PRIMARY KEY,
    ApplicationId uniqueidentifier NULL,
    ExpirationDate datetime2 NULL,
    Payload nvarchar(max) NULL,
    Status nvarchar(50) NULL,
    Type nvarchar(50) NULL
);
GO

CREATE INDEX IX_OpenIddictToken_ExpirationDate ON dmscs.OpenIddictToken (ExpirationDate);
GO

CREATE TABLE dbo.ClientAccessTokenLogs (
    LogId bigint IDENTITY (1, 1) NOT NULL PRIMARY KEY,
    TokenId uniqueidentifier NOT NULL DEFAULT NEWID(),
    AccessTime datetime2 NOT NULL DEFAULT SYSUTCDATETIME()
);
GO

CREATE INDEX IX_ClientAccessTokenLogs_AccessTime ON dbo.ClientAccessTokenLogs (AccessTime);
GO
