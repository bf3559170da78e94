-- The login of the purge, with the least rights that it needs. Run it in each
-- Ed-Fi admin database, and in the template that tenants are made from, as the owner
-- of the table or an administrator:
--
--     psql --dbname EdFi_Admin --file infra/postgres/role.sql
--
-- Where TABLES has other tables than ClientAccessTokens, say so ahead of it, in the
-- same session; for psql that is
--
--     export PGOPTIONS='-c edfi_token_purge.tables=ClientAccessTokens,adminapi.Tokens'
--
-- docs/deploy.md has the commands for all databases, and for the password. It
-- can be run again. It does all or nothing. Set the password afterwards, where no
-- log keeps it:
--
--     \password edfi_token_purge

DO $$
DECLARE
    member text;
    tables text[] := string_to_array(coalesce(NULLIF(current_setting('edfi_token_purge.tables', true), ''), 'ClientAccessTokens'), ',');
    asked record;
    found int := 0;
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

    -- Enough to delete a row, to know when it expires, and to tell it from others by its
    -- place: no token is read. Names are as the table has them, quoted or folded.
    FOR asked IN
        SELECT c.oid::regclass AS relation, n.nspname, a.attname
        FROM (VALUES ('ClientAccessTokens', 'dbo', 'clientaccesstokens', 'expiration'),
                     ('adminapi.Tokens', 'adminapi', 'tokens', 'expirationdate'),
                     ('dmscs.OpenIddictToken', 'dmscs', 'openiddicttoken', 'expirationdate'),
                     ('ClientAccessTokenLogs', 'dbo', 'clientaccesstokenlogs', 'accesstime')) AS known (name, space, relation, expiration)
        JOIN pg_namespace n ON n.nspname = known.space
        JOIN pg_class c ON c.relnamespace = n.oid AND lower(c.relname) = known.relation AND c.relkind IN ('r', 'p')
        JOIN pg_attribute a ON a.attrelid = c.oid AND lower(a.attname) = known.expiration
        WHERE known.name = ANY (tables)
    LOOP
        found := found + 1;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO edfi_token_purge_rights', asked.nspname);
        EXECUTE format('GRANT SELECT (ctid, %I), DELETE ON %s TO edfi_token_purge_rights', asked.attname, asked.relation);
    END LOOP;
    IF found = 0 THEN
        RAISE EXCEPTION 'this database has none of the tables %', tables;
    END IF;
END
$$;
