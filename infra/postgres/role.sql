-- The login of the purge, with the least rights that it needs. Run it in each
-- Ed-Fi admin database, and in the template that tenants are made from, as the owner
-- of the table or an administrator:
--
--     psql --dbname EdFi_Admin --file infra/postgres/role.sql
--
-- docs/deploy.md has the commands for all databases, and for the password. It
-- can be run again. It does all or nothing. Set the password afterwards, where no
-- log keeps it:
--
--     \password edfi_token_purge

DO $$
DECLARE
    member text;
BEGIN
    -- The rights are those of a role that nobody logs in with. Rotation between two
    -- users makes a second login, whose name ends in _clone: both are members.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'edfi_token_purge_rights') THEN
        CREATE ROLE edfi_token_purge_rights NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'edfi_token_purge') THEN
        CREATE ROLE edfi_token_purge LOGIN;
    END IF;
    FOR member IN SELECT rolname FROM pg_roles WHERE rolname IN ('edfi_token_purge', 'edfi_token_purge_clone') LOOP
        IF NOT pg_has_role(member, 'edfi_token_purge_rights', 'USAGE') THEN
            EXECUTE format('GRANT edfi_token_purge_rights TO %I', member);
        END IF;
    END LOOP;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO edfi_token_purge_rights', current_database());

    GRANT USAGE ON SCHEMA dbo TO edfi_token_purge_rights;

    -- Enough for a purge by expiration: the role can delete tokens, but not read one.
    GRANT SELECT (expiration), DELETE ON dbo.clientaccesstokens TO edfi_token_purge_rights;

    -- Only where the index on expiration is missing and a run takes too long: with it
    -- rows are told apart by their place, which takes the right to read the whole
    -- table, tokens included.
    -- GRANT SELECT ON dbo.clientaccesstokens TO edfi_token_purge_rights;
END
$$;
