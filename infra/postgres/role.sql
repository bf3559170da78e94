-- The login of the purge, with the least rights that it needs. Run it in each
-- Ed-Fi admin database, as the owner of the table or an administrator:
--
--     psql --dbname EdFi_Admin --file infra/postgres/role.sql
--
-- docs/deploy.md has the commands for all databases, and for the password. It
-- can be run again. Set the password afterwards, where no log keeps it:
--
--     \password edfi_token_purge

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'edfi_token_purge') THEN
        CREATE ROLE edfi_token_purge LOGIN;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO edfi_token_purge', current_database());
END
$$;

GRANT USAGE ON SCHEMA dbo TO edfi_token_purge;

-- Enough for a purge by expiration: the role can delete tokens, but not read one.
GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO edfi_token_purge;

-- Only where the index on expiration is missing, or where many rows share one
-- expiration: then rows are told apart by their place, which takes the right to
-- read the whole table, tokens included.
-- GRANT SELECT ON dbo.clientaccesstokens TO edfi_token_purge;
