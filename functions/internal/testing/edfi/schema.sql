-- The part of EdFi_Admin that tokens live in. Columns, types, constraints and
-- indexes of the token table are those of Ed-Fi ODS/API 5.3 to 7.3; the
-- clients are cut down to what the foreign key needs.
CREATE SCHEMA dbo;

CREATE TABLE dbo.apiclients (
    apiclientid serial      NOT NULL PRIMARY KEY,
    key         varchar(50) NOT NULL,
    name        varchar(50) NOT NULL
);

CREATE TABLE dbo.clientaccesstokens (
    id                    uuid      NOT NULL, -- the bearer token itself
    expiration            timestamp NOT NULL, -- UTC wall clock
    scope                 varchar   NULL,
    apiclient_apiclientid int       NULL,
    CONSTRAINT clientaccesstokens_pk PRIMARY KEY (id),
    CONSTRAINT fk_clientaccesstokens_apiclients FOREIGN KEY (apiclient_apiclientid)
        REFERENCES dbo.apiclients (apiclientid)
);

CREATE INDEX ix_clientaccesstokens_expiration ON dbo.clientaccesstokens (expiration DESC);
