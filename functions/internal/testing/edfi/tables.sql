-- The tables beside ClientAccessTokens that grow for ever, as their products have them on
-- PostgreSQL.

CREATE SCHEMA adminapi;
CREATE TABLE adminapi.Tokens (
    Id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ApplicationId int,
    ExpirationDate timestamp,
    Payload text,
    Status varchar(50),
    Type varchar(50)
);

CREATE SCHEMA dmscs;
CREATE TABLE dmscs."OpenIddictToken" (
    "Id" uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    "ApplicationId" uuid,
    "ExpirationDate" timestamp,
    "Payload" text,
    "Status" varchar(50),
    "Type" varchar(50)
);
CREATE INDEX "IX_OpenIddictToken_ExpirationDate" ON dmscs."OpenIddictToken" ("ExpirationDate");

CREATE TABLE dbo.ClientAccessTokenLogs (
    LogId bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    TokenId uuid NOT NULL DEFAULT gen_random_uuid(),
    AccessTime timestamp NOT NULL DEFAULT now()
);
CREATE INDEX ix_clientaccesstokenlogs_accesstime ON dbo.ClientAccessTokenLogs (AccessTime);
