-- The part of Ed-Fi's admin database that holds bearer tokens, as Ed-Fi's own
-- scripts leave it on SQL Server.
CREATE TABLE dbo.ApiClients (
    ApiClientId int IDENTITY(1, 1) NOT NULL,
    [Key] nvarchar(50) NOT NULL,
    Name nvarchar(50) NOT NULL,
    CONSTRAINT PK_ApiClients PRIMARY KEY CLUSTERED (ApiClientId)
);
GO

CREATE TABLE dbo.ClientAccessTokens (
    Id uniqueidentifier NOT NULL,
    ApiClient_ApiClientId int NULL,
    Expiration datetime NOT NULL,
    Scope nvarchar(max) NULL,
    CONSTRAINT PK_ClientAccessTokens PRIMARY KEY CLUSTERED (Id),
    CONSTRAINT FK_ClientAccessTokens_ApiClients FOREIGN KEY (ApiClient_ApiClientId) REFERENCES dbo.ApiClients (ApiClientId)
);
GO

CREATE INDEX IX_ApiClient_ApiClientId ON dbo.ClientAccessTokens (ApiClient_ApiClientId);
GO

CREATE INDEX IX_ClientAccessTokens_Expiration ON dbo.ClientAccessTokens (Expiration DESC);
GO
