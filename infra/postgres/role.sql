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
-- can be run again: it then also takes back what it granted on those of the four
-- tables that are not asked for any more. It does all or nothing. Set the password
-- afterwards, where no log keeps it:
--
--     \password edfi_token_purge

DO $$
DECLARE
    member text;
    tables text[] := ARRAY(SELECT trim(name) FROM unnest(string_to_array(
        coalesce(NULLIF(current_setting('edfi_token_purge.tables', true), ''), 'ClientAccessTokens'), ',')) AS name);
    its record;
    found int := 0;
BEGIN
    IF NOT tables <@ ARRAY['ClientAccessTokens', 'adminapi.Tokens', 'dmscs.OpenIddictToken', 'ClientAccessTokenLogs'] THEN
        RAISE EXCEPTION 'edfi_token_purge.tables has a name that is none of ClientAccessTokens, adminapi.Tokens, dmscs.OpenIddictToken, ClientAccessTokenLogs: %', tables;
    END IF;

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
        IF NOT pg_has_role(member, 'edfi_token_purge_rights', 'USAGE') THEN -- it was made NOINHERIT
            IF current_setting('server_version_num')::int >= 160000 THEN
                EXECUTE format('GRANT edfi_token_purge_rights TO %I WITH INHERIT TRUE', member);
            ELSE
                EXECUTE format('ALTER ROLE %I INHERIT', member);
            END IF;
        END IF;
    END LOOP;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO edfi_token_purge_rights', current_database());

    -- Enough to delete a row, to know when it expires, and to tell it from others by its
    -- place: no token is read. Names are as the table has them, quoted or folded. Whoever
    -- may not grant or revoke gets no more than a warning from the server.
    FOR its IN
        SELECT c.oid::regclass AS relation, n.nspname, a.attname, known.name = ANY (tables) AS asked,
               EXISTS (SELECT FROM aclexplode(c.relacl) WHERE grantee = 'edfi_token_purge_rights'::regrole AND privilege_type = 'DELETE')
               OR EXISTS (SELECT FROM pg_attribute p, aclexplode(p.attacl)
                          WHERE p.attrelid = c.oid AND p.attname IN ('ctid', a.attname) AND grantee = 'edfi_token_purge_rights'::regrole) AS granted
        FROM (VALUES ('ClientAccessTokens', 'dbo', 'clientaccesstokens', 'expiration'),
                     ('adminapi.Tokens', 'adminapi', 'tokens', 'expirationdate'),
                     ('dmscs.OpenIddictToken', 'dmscs', 'openiddicttoken', 'expirationdate'),
                     ('ClientAccessTokenLogs', 'dbo', 'clientaccesstokenlogs', 'accesstime')) AS known (name, space, relation, expiration)
        JOIN pg_namespace n ON n.nspname = known.space
        JOIN pg_class c ON c.relnamespace = n.oid AND lower(c.relname) = known.relation AND c.relkind IN ('r', 'p')
        JOIN pg_attribute a ON a.attrelid = c.oid AND lower(a.attname) = known.expiration
    LOOP
        IF its.asked THEN
            found := found + 1;
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO edfi_token_purge_rights', its.nspname);
            EXECUTE format('GRANT SELECT (ctid, %I), DELETE ON %s TO edfi_token_purge_rights', its.attname, its.relation);
        ELSIF its.granted THEN
            RAISE NOTICE 'taken back, as it is not asked for: %', its.relation;
            EXECUTE format('REVOKE SELECT (ctid, %I), DELETE ON %s FROM edfi_token_purge_rights', its.attname, its.relation);
        END IF;
        IF (its.asked OR its.granted) AND has_table_privilege('edfi_token_purge_rights', its.relation, 'DELETE') <> its.asked THEN
            RAISE EXCEPTION 'the rights on % could not be changed: run this as its owner or an administrator', its.relation;
        END IF;
    END LOOP;
    IF found = 0 THEN
        RAISE EXCEPTION 'this database has none of the tables %', tables;
    END IF;
    FOR its IN
        SELECT n.nspname FROM pg_namespace n, aclexplode(n.nspacl) AS acl
        WHERE n.nspname IN ('dbo', 'adminapi', 'dmscs') AND acl.grantee = 'edfi_token_purge_rights'::regrole
          AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND has_table_privilege('edfi_token_purge_rights', c.oid, 'DELETE'))
    LOOP
        EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM edfi_token_purge_rights', its.nspname);
    END LOOP;
END
$$;
