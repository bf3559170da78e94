package postgres

// Every statement that this package sends. None of them reads a key: that may be
// the bearer token itself. {table} and {expiration} stand for the names as SQL writes
// them, {column} for the column's as the catalogue has it: see [facts.on]. In a session
// whose zone is UTC a timestamp compares with either type of column.
const (
	// The session's settings. Asynchronous commit is safe here, for a delete
	// that a crash undoes is made again by the next run. No sequential scan, no
	// bitmap and no sort, so that missing statistics can't turn each batch into a
	// reading of the whole table; where nothing else serves, they are used
	// nevertheless. Compiling a statement takes longer than running it, and other
	// processors are for the API. Dates come in the form that the driver reads. The
	// keepalives let the server find out within a minute that a function has
	// vanished, and with it the lock. The zone is UTC, so that a column that
	// becomes timestamptz while a run deletes is still compared as the instant
	// that was meant: in a zone west of Greenwich live tokens would go.
	//
	// What else a role, a database or a server may have set, and what would end or
	// bend the session: limits of time, an isolation in which a batch fails for
	// others, row_security off, which makes row-level security an error instead of a
	// finding, strings in which a backslash is special, and notices of triggers, which
	// nobody reads and which fail where they have letters beyond UTF-8. Names are ours to the
	// end: whatever the search_path is, pg_catalog comes first, and the rest stays for
	// triggers that count on it. session_replication_role and track_counts are a
	// superuser's to set.
	// Of default_transaction_read_only and of role nothing is taken: whoever set them may
	// mean it.
	// A server that doesn't know a setting doesn't get it.
	sqlSettings = `
SELECT name, pg_catalog.set_config(name, value, false)
FROM (VALUES ('synchronous_commit', 'off'),
             ('enable_seqscan', 'off'),
             ('enable_bitmapscan', 'off'),
             ('enable_sort', 'off'),
             ('jit', 'off'),
             ('max_parallel_workers_per_gather', '0'),
             ('DateStyle', 'ISO'),
             ('TimeZone', 'UTC'),
             ('tcp_keepalives_idle', '30'),
             ('tcp_keepalives_interval', '10'),
             ('tcp_keepalives_count', '3'),
             ('statement_timeout', '0'),
             ('lock_timeout', '0'),
             ('transaction_timeout', '0'),
             ('idle_in_transaction_session_timeout', '0'),
             ('idle_session_timeout', '0'),
             ('default_transaction_isolation', 'read committed'),
             ('default_transaction_deferrable', 'off'),
             ('row_security', 'on'),
             ('standard_conforming_strings', 'on'),
             ('client_min_messages', 'error'),
             ('track_counts', CASE pg_catalog.current_setting('is_superuser') WHEN 'on' THEN 'on' END),
             ('session_replication_role', CASE pg_catalog.current_setting('is_superuser') WHEN 'on' THEN 'origin' END),
             ('search_path', pg_catalog.concat_ws(', ', 'pg_catalog', NULLIF(pg_catalog.current_setting('search_path'), '')))) AS setting (name, value)
WHERE ` + sqlOwn + `
  AND value IS NOT NULL
  AND pg_catalog.current_setting(name, true) IS NOT NULL`

	// Dates are written so that they can be read, until the transaction ends.
	sqlReadable = `SELECT pg_catalog.set_config('DateStyle', 'ISO', true)`

	// Whether the session is the process $1, and was no older than $2 milliseconds when the
	// transaction began; NULL is any age. It is the same for all statements of one.
	sqlOwn = `pg_catalog.pg_backend_pid() = $1::pg_catalog.int8
  AND coalesce((SELECT pg_catalog.date_part('epoch', pg_catalog.now() - backend_start) * 1000
                FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())) <= $2::pg_catalog.float8, true)`

	// What was set in the session by whoever had it before.
	sqlBefore = `SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session'`

	sqlSet = `SELECT pg_catalog.set_config($1, $2, false)`

	sqlBackend = `SELECT pg_catalog.pg_backend_pid()`

	sqlNotify = `SELECT pg_catalog.pg_notify($1, '')`

	// How many more connections the login may have: what the limits leave of the server,
	// less what it reserves (RDS reserves some of its own), of the database and of the
	// role. A superuser has no limit but the server's. A process of the server's
	// own belongs to no user or no database.
	sqlFreeSlots = `
SELECT greatest(0, least(
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(NULLIF(current_setting('reserved_connections', true), '')::int, 0)
        - coalesce(NULLIF(current_setting('rds.rds_superuser_reserved_connections', true), '')::int, 0) - taken.everywhere,
    CASE WHEN datconnlimit >= 0 AND NOT rolsuper THEN datconnlimit - taken.here END,
    CASE WHEN rolconnlimit >= 0 AND NOT rolsuper THEN rolconnlimit - taken.ours END))::int
FROM (SELECT count(*) AS everywhere,
             count(*) FILTER (WHERE datname = current_database()) AS here,
             count(*) FILTER (WHERE usename = session_user) AS ours
      FROM pg_stat_activity WHERE usesysid IS NOT NULL AND datid IS NOT NULL) AS taken,
     pg_database, pg_roles
WHERE datname = current_database() AND rolname = session_user`

	// The catalogue, and why a database of it is none to connect to. A limit of no
	// connections, which is how one is closed for a time, does not hold for a
	// superuser.
	sqlDatabases = `
SELECT datname,
       CASE WHEN datname IN ('rdsadmin', 'cloudsqladmin', 'azure_maintenance', 'azure_sys') THEN 'it is a system database'
            WHEN datistemplate THEN 'it is a template, which nobody may have open'
            WHEN NOT datallowconn OR datconnlimit = -2
              OR datconnlimit = 0 AND current_setting('is_superuser') = 'off' THEN 'it takes no connections'
            ELSE '' END
FROM pg_database
ORDER BY datname`

	// What was examined once and is relied on later: which table has the name, the
	// type of its column, its partitions or children, and what row-level security
	// hides; whether a delete does more than delete, and whether the server counts. Rights
	// need no place here, as the server looks after them; nor does what triggers and rules
	// do, as it is counted; an index that goes makes a run slow and not wrong.
	sqlSignature = `concat_ws(' ', a.atttypid, c.relkind, row_security_active(c.oid), ` + sqlLeaves + `::text, ` + sqlActs + `, current_setting('track_counts'),
           CASE WHEN row_security_active(c.oid) THEN (
               SELECT string_agg(concat_ws(' ', p.oid, p.polcmd, p.polpermissive, ` + sqlConcerns + `, pg_get_expr(p.polqual, p.polrelid)), ',' ORDER BY p.oid)
               FROM pg_policy p WHERE p.polrelid = c.oid) END)`

	// The table itself and all that inherit from it, partitions among them.
	sqlLeaves = `CASE WHEN c.relhassubclass THEN ARRAY(
               WITH RECURSIVE tree (oid) AS (
                   SELECT c.oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
               SELECT oid FROM tree ORDER BY oid)
           ELSE ARRAY[c.oid] END`

	// Whether more happens at a delete: a trigger of the table or of a part of it, a
	// foreign key that leads there, which is a trigger too, or a rule.
	sqlActs = `CASE WHEN c.relhastriggers OR c.relhasrules OR c.relhassubclass THEN
               EXISTS (SELECT FROM pg_trigger WHERE tgrelid = ANY (` + sqlLeaves + `) AND tgenabled <> 'D' AND tgtype & 8 <> 0)
               OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND ev_type = '4' AND ev_enabled <> 'D')
           ELSE false END`

	// A condition that is asked once for a statement, which has its locks by then. Its
	// parameter is the signature that was examined, between the parts: another one is an
	// error. Where the rows are counted, what the transaction has deleted so far is
	// kept for sqlProve, which comes next.
	sqlUnchanged = `
  AND ` + sqlAsked
	sqlAsked     = `(SELECT CASE WHEN ` + sqlSignature + ` = `
	sqlThen      = ` THEN true` + sqlElse
	sqlThenCount = ` THEN ` + sqlKeepNet + sqlElse
	sqlElse      = `
       ELSE ('changed: ' || c.relname)::boolean END` + sqlFromCatalogue
	sqlFromCatalogue = `
       FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = '{column}'
       WHERE c.oid = to_regclass('{table}'))`

	// The same of what a look finds, where it is asked although row-level security hides
	// each row: since PostgreSQL 18 no other condition is looked at then.
	sqlStill = `
HAVING ` + sqlAsked

	// The same condition where rows are deleted and counted, as the end of the window,
	// $2: that costs nothing for each row.
	sqlUntil     = `(SELECT CASE WHEN ` + sqlSignature + ` = `
	sqlUntilThen = ` AND ` + sqlKeepNet + ` THEN $2::timestamp
       ELSE ('changed: ' || c.relname)::timestamp END` + sqlFromCatalogue
	sqlKeepNet = `set_config('edfi_token_purge.before', (
           SELECT ` + sqlNet + ` FROM unnest(` + sqlLeaves + `) AS leaf)::text, true) IS NOT NULL`

	// How many rows this session has deleted and not put back, as the server counts
	// them for its statistics: whatever a trigger or a rule made of the statement.
	sqlNet = `coalesce(sum(pg_stat_get_xact_tuples_deleted(leaf) - pg_stat_get_xact_tuples_inserted(leaf)), 0)`

	// Has triggers that wait for the commit run ahead of sqlProve. In a DO, for on its own
	// it warns outside of a transaction block.
	sqlRunDeferred = `DO 'BEGIN SET CONSTRAINTS ALL IMMEDIATE; END'`

	// The number of the transaction, which it gets here, and whether that one was committed.
	sqlTransaction = `SELECT pg_current_xact_id()`
	sqlCommitted   = `SELECT coalesce(pg_xact_status($1::text::xid8), '')`

	// What the DELETE before it in the same transaction came to: the rows that are
	// gone, the time it took, the transaction's number, 0 where it wrote nothing, and
	// sqlWrites. Where more rows are gone than $2, a division by zero undoes them. Where the
	// DELETE was not even asked whether the table had changed, a rule took its place, and
	// nothing is gone.
	sqlProve = sqlProof + `
FROM (SELECT coalesce(` + sqlNet + ` - NULLIF(current_setting('edfi_token_purge.before', true), '')::bigint, 0)::bigint AS net
      FROM unnest($1::oid[]) AS leaf) AS counted`

	sqlProof = `
SELECT net / CASE WHEN net > $2 THEN 0 ELSE 1 END,
       (extract(epoch FROM clock_timestamp() - now()) * 1000000)::bigint,
       coalesce(pg_current_xact_id_if_assigned()::text::bigint, 0),
       ` + sqlXmax

	// The same where the server keeps no count: the DELETE itself tells how many it
	// returned.
	sqlReturning      = `WITH gone AS (%s RETURNING 1) SELECT set_config('edfi_token_purge.gone', count(*)::text, true) FROM gone`
	sqlProveReturning = sqlProof + `
FROM (SELECT coalesce(NULLIF(current_setting('edfi_token_purge.gone', true), '')::bigint, 0) AS net
      WHERE $1::oid[] IS NOT NULL) AS counted`

	// Whether row-level security hides rows from this login, or may: for reading and
	// for deleting there is a policy that lets all of them through, and none that takes
	// any away.
	sqlHides = `EXISTS (
           SELECT FROM (VALUES ('r'), ('d')) AS need (cmd)
           WHERE NOT EXISTS (` + sqlPolicies + ` AND p.polpermissive AND pg_get_expr(p.polqual, p.polrelid) = 'true')
              OR ` + sqlTakes + `)`
	sqlTakes    = `EXISTS (` + sqlPolicies + ` AND NOT p.polpermissive AND pg_get_expr(p.polqual, p.polrelid) <> 'true')`
	sqlPolicies = `
               SELECT FROM pg_policy p
               WHERE p.polrelid = c.oid AND p.polcmd::text IN ('*', need.cmd)
                 AND ` + sqlConcerns

	// Whether a policy is for this login, too.
	sqlConcerns = `EXISTS (SELECT FROM unnest(p.polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE'))`

	// Where deletes are published, to subscribers that could not tell by it which row
	// went, the server refuses each: the statements that mend it, for the table and those
	// that inherit from it. A key that may wait for the commit identifies nothing, and what
	// has a part has the part's deletes, under whatever name it publishes them.
	sqlUnidentified = `(
               SELECT string_agg(` + sqlIdentify + `, ' ' ORDER BY leaf)
               FROM unnest(` + sqlLeaves + `) AS leaf
               JOIN pg_class l ON l.oid = leaf AND l.relkind = 'r'
               WHERE l.relreplident <> 'f' AND NOT EXISTS (
                   SELECT FROM pg_index i WHERE i.indrelid = leaf AND i.indimmediate
                     AND CASE l.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
                 AND EXISTS (
                   SELECT FROM pg_publication p, pg_get_publication_tables(p.pubname) AS published
                   WHERE p.pubdelete AND published.relid IN (SELECT leaf UNION SELECT relid::oid FROM pg_partition_ancestors(leaf) AS relid)))`
	sqlIdentify = `format('ALTER TABLE %s.%I REPLICA IDENTITY FULL;', l.relnamespace::regnamespace, l.relname)`

	// It refuses them too where a publication has a list of columns, or a condition, that
	// the replica identity does not go with, since PostgreSQL 15: the statements that mend
	// either.
	sqlMisidentified = `coalesce((
               SELECT string_agg(format('ALTER PUBLICATION %1$I DROP TABLE %2$s.%3$I; ALTER PUBLICATION %1$I ADD TABLE %2$s.%3$I;', p.pubname, l.relnamespace::regnamespace, l.relname), ' ')
               FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class l ON l.oid = r.prrelid
               WHERE p.pubdelete AND l.oid = ANY (` + sqlLeaves + `) AND to_jsonb(r) ->> 'prattrs' IS NOT NULL), (
               SELECT string_agg(` + sqlIdentify + `, ' ' ORDER BY l.oid)
               FROM pg_class l WHERE l.oid = ANY (` + sqlLeaves + `) AND l.relkind = 'r'), '')`

	// What the server refuses as soon as a delete begins, it refuses here.
	sqlWouldDelete = `EXPLAIN DELETE FROM {table} WHERE {expiration} IS NOT NULL`

	// Four settings that are not ours to change for the session, and the statements that
	// change each wherever it is set for this login: no message names the login.
	sqlResets = `ARRAY(
           SELECT coalesce((
               SELECT string_agg(CASE WHEN setrole = 0 THEN format('ALTER DATABASE %I RESET %I;', current_database(), name)
                                      WHEN setdatabase = 0 THEN format('ALTER ROLE edfi_token_purge RESET %I;', name)
                                      ELSE format('ALTER ROLE edfi_token_purge IN DATABASE %I RESET %I;', current_database(), name) END, ' ')
               FROM pg_db_role_setting, unnest(setconfig) AS setting
               WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                 AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
                 AND split_part(setting, '=', 1) = name),
               CASE name WHEN 'role' THEN 'RESET ROLE;' ELSE format('ALTER SYSTEM SET %I = %L; SELECT pg_reload_conf();', name, boot_val) END)
           FROM (SELECT name, boot_val FROM pg_settings
                 WHERE name IN ('default_transaction_read_only', 'session_replication_role', 'track_counts')
                 UNION ALL SELECT 'role', '') AS known
           ORDER BY name)`

	// Bytes that each row has at least, beyond its header.
	sqlLeastRow = `
           SELECT sum(attlen) / 8 * 8 FROM pg_attribute
           WHERE attrelid = c.oid AND attnum > 0 AND attnotnull AND attlen > 0 AND NOT attisdropped AND NOT atthasmissing`

	// An index that finds the rows of leaf in the order of their expiration: it has no
	// nulls first, or is read backwards.
	sqlIndexOfLeaf = `
               SELECT FROM pg_index i
               JOIN pg_class x ON x.oid = i.indexrelid
               JOIN pg_am m ON m.oid = x.relam
               JOIN pg_opclass o ON o.oid = i.indclass[0]
               JOIN pg_attribute e ON e.attrelid = leaf AND e.attname = a.attname
               WHERE i.indrelid = leaf AND i.indkey[0] = e.attnum
                 AND i.indisvalid AND i.indisready AND i.indpred IS NULL
                 AND m.amname = 'btree' AND o.opcdefault AND i.indoption[0] IN (0, 3)`

	// What must be known before anything is deleted, in one round trip. The
	// catalogue tells it without any right on the table.
	sqlFacts = `
SELECT clock_timestamp() AT TIME ZONE 'UTC',
       current_database(),
       current_setting('server_version_num')::int,
       pg_is_in_recovery(),
       coalesce(c.oid, 0),
       coalesce(CASE WHEN EXISTS (
           SELECT FROM unnest(` + sqlLeaves + `) AS leaf JOIN pg_class l ON l.oid = leaf AND l.oid <> c.oid AND l.relkind = 'f')
           THEN 'F' ELSE c.relkind END, ' '),
       coalesce(c.relkind = 'r' AND NOT c.relhassubclass, false),
       coalesce(format_type(a.atttypid, NULL), ''),
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
       coalesce(has_column_privilege(c.oid, a.attnum, 'SELECT'), false),
       coalesce(has_column_privilege(c.oid, (-1)::int2, 'SELECT'), false),
       coalesce(has_table_privilege(c.oid, 'SELECT'), false),
       coalesce(has_table_privilege(c.oid, 'DELETE'), false),
       coalesce(row_security_active(c.oid), false),
       ARRAY(
           SELECT format('%I.%I', s.nspname, l.relname) FROM unnest(` + sqlLeaves + `) AS leaf
           JOIN pg_class l ON l.oid = leaf AND l.relkind <> 'p'
           JOIN pg_namespace s ON s.oid = l.relnamespace
           WHERE NOT EXISTS (` + sqlIndexOfLeaf + `) ORDER BY leaf LIMIT 21),
       coalesce(` + sqlSignature + `, ''),
       array_remove(` + sqlLeaves + `, NULL),
       current_setting('track_counts') = 'on',
       coalesce(pg_stat_get_dead_tuples(c.oid), 0),
       (current_setting('block_size')::int - 24) / (28 + coalesce((` + sqlLeastRow + `), 0)),
       EXISTS (SELECT FROM pg_publication WHERE pubdelete),
       coalesce(` + sqlActs + `, false),
       EXISTS (SELECT FROM pg_proc WHERE pronamespace = n.oid AND proname = 'accesstokenisvalid'),
       coalesce(quote_ident(c.relname), ($2::text[])[2]), coalesce(quote_ident(a.attname), ($3::text[])[2]), coalesce(a.attname, ''),
       pg_backend_pid(),
       current_setting('transaction_read_only') = 'on',
       current_setting('session_replication_role') = 'replica',
       current_user <> session_user,
       coalesce((SELECT format('%I.%I', $1::text, relname) FROM pg_class
                 WHERE relnamespace = n.oid AND relname = ANY ($2) AND oid <> c.oid AND relkind IN ('r', 'p')), '')
FROM (SELECT) AS always
LEFT JOIN pg_namespace n ON n.nspname = $1
LEFT JOIN LATERAL (
    SELECT * FROM pg_class WHERE relnamespace = n.oid AND relname = ANY ($2) ORDER BY relname DESC LIMIT 1) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM pg_attribute WHERE attrelid = c.oid AND attname = ANY ($3) ORDER BY attname DESC LIMIT 1) a ON true`

	// What the facts alone don't settle, where they show anything unusual. It takes the
	// server as long to plan as all of them.
	sqlObstacles = `
SELECT coalesce(row_security_active(c.oid) AND ` + sqlHides + `, false),
       EXISTS (SELECT FROM (VALUES ('r'), ('d')) AS need (cmd) WHERE ` + sqlTakes + `),
       coalesce(` + sqlUnidentified + `, ''),
       ` + sqlMisidentified + `,
       ` + sqlResets + `
FROM (SELECT) AS always
LEFT JOIN pg_class c ON c.oid = $1`

	// The earliest of the clocks that may have written expirations of a table in which
	// their zone is not certain: UTC, the server's, and what roles and this database have
	// set. Where this role's own setting hides the server's, it is the earliest that
	// there is. A zone is set, until the transaction ends, for AT TIME ZONE reads some
	// otherwise: -7 is Denver in a setting, and east of Greenwich there. When a clock is
	// about to be put back, it is what it will show then; when it was put forward while
	// tokens that expired before, $1 seconds ago at most, are still accepted, it is what it
	// would have shown.
	sqlLocalClock = `
SELECT min(CASE WHEN set_config('TimeZone', zone, true) <> '' THEN instant::timestamp + since END)
FROM (SELECT 'UTC' AS zone
      UNION SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'
      UNION SELECT substring(setting FROM '=(.*)')
            FROM pg_db_role_setting JOIN pg_database ON datname = current_database(), unnest(setconfig) AS setting
            WHERE setdatabase IN (0, pg_database.oid) AND lower(setting) LIKE 'timezone=%'
      UNION SELECT 'Etc/GMT+12'
            FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole AND rolname = session_user, unnest(setconfig) AS setting
            WHERE lower(setting) LIKE 'timezone=%') AS zones,
     (SELECT clock_timestamp() AS instant, interval '0' AS since
      UNION SELECT clock_timestamp() - make_interval(secs => $1), make_interval(secs => $1)
      UNION SELECT to_timestamp((ceil(extract(epoch FROM clock_timestamp()) / 900) + quarter) * 900), interval '0' FROM generate_series(0, 12) AS quarter) AS instants`

	// What acts on deletes, as the statements that end it: triggers of the table and of
	// its parts, rules, and foreign keys that lead there.
	sqlTriggers = `coalesce((
           SELECT string_agg(format('ALTER TABLE %I.%I DISABLE TRIGGER %I;', s.nspname, l.relname, t.tgname), ' ' ORDER BY l.oid, t.tgname)
           FROM pg_trigger t JOIN pg_class l ON l.oid = t.tgrelid JOIN pg_namespace s ON s.oid = l.relnamespace
           WHERE t.tgrelid = ANY (` + sqlLeaves + `) AND NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled <> 'D' AND t.tgtype & 8 <> 0), '')`
	sqlRules = `coalesce((
           SELECT string_agg(format('ALTER TABLE {table} DISABLE RULE %I;', rulename), ' ' ORDER BY rulename)
           FROM pg_rewrite WHERE ev_class = c.oid AND ev_type = '4' AND ev_enabled <> 'D'), '')`
	sqlReferences = `coalesce((
           SELECT string_agg(format('ALTER TABLE %I.%I DROP CONSTRAINT %I;', s.nspname, l.relname, k.conname), ' ' ORDER BY l.oid, k.conname)
           FROM pg_constraint k JOIN pg_class l ON l.oid = k.conrelid JOIN pg_namespace s ON s.oid = l.relnamespace
           WHERE k.confrelid = ANY (` + sqlLeaves + `) AND k.conparentid = 0), '')`
	sqlWhatActs = `
SELECT concat_ws(' ', NULLIF(` + sqlTriggers + `, ''), NULLIF(` + sqlRules + `, ''), NULLIF(` + sqlReferences + `, ''))
FROM pg_class c WHERE c.oid = $1`

	// How large another table is, by its statistics, and whether the login may read the
	// time in its rows.
	sqlSurvey = `
SELECT quote_ident(c.relname), quote_ident(a.attname), greatest(c.reltuples, pg_stat_get_live_tuples(c.oid))::bigint,
       has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = $1 AND lower(c.relname) = $2 AND lower(a.attname) = $3 AND c.relkind IN ('r', 'p')
LIMIT 1`

	sqlEldest = `SELECT min({expiration})::timestamp FROM {table}`

	// What a check tells beyond the facts, in one round trip. At its end: may the
	// login read the jobs of pgAgent, and of pg_cron (NULL is that they are not kept
	// here), and are those of others hidden from it, as pg_cron does?
	sqlCheck = `
WITH kept AS (
    SELECT nspname, c.oid, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (nspname, relname) IN (('pgagent', 'pga_job'), ('pgagent', 'pga_jobstep'), ('cron', 'job'))
)
SELECT current_setting('server_version'),
       (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'),
       ` + sqlTriggers + `, ` + sqlRules + `, ` + sqlReferences + `,
       pg_table_size(c.oid), pg_indexes_size(c.oid),
       coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0),
       (SELECT bool_and(readable) FROM kept WHERE nspname = 'pgagent'),
       (SELECT bool_and(readable) FROM kept WHERE nspname = 'cron'),
       coalesce((SELECT bool_or(row_security_active(oid)) FROM kept), false)
FROM pg_class c
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE c.oid = $1`

	// Enabled jobs that delete from the table, where their schedulers are in this
	// database, and the statements that end that.
	sqlJobsOfPgAgent = `
SELECT 'pgAgent job ' || j.jobname, format('UPDATE pgagent.pga_jobstep SET jstenabled = false WHERE jstid = %s;', s.jstid)
FROM pgagent.pga_job j
JOIN pgagent.pga_jobstep s ON s.jstjobid = j.jobid
WHERE j.jobenabled AND s.jstenabled AND s.jstcode ~* $1
ORDER BY 1, s.jstid`

	sqlJobsOfPgCron = `
SELECT 'pg_cron job ' || jobid, format('SELECT cron.alter_job(job_id := %s, active := false);', jobid)
FROM cron.job
WHERE active AND command ~* $1
ORDER BY jobid`

	// One run at a time for each database. The numbers spell EdFi and Purg. The
	// server lets the lock go when the connection ends, however it ends.
	sqlLock = `SELECT CASE WHEN ` + sqlOwn + ` THEN pg_try_advisory_lock(1164200553, 1349874279) ELSE false END`

	sqlUnlock = `SELECT pg_advisory_unlock(1164200553, 1349874279)`

	// Sent ahead of the statements below, now and then. A physical range must be
	// read as one; with index scans allowed the planner may prefer the expiration
	// index. With those off and sequential ones on, a look reads the whole table.
	// Planned once, a statement keeps its plan, which saves a batch the planner's
	// look at the end of the index, where the deleted entries are; a look that reads
	// the whole table is planned for itself. Nothing is set in another session than
	// the run's own.
	sqlLimits = `
SELECT set_config('statement_timeout', $1, false),
       set_config('lock_timeout', $2, false),
       set_config('enable_indexscan', $3, false),
       set_config('enable_seqscan', $4, false),
       set_config('plan_cache_mode', CASE $4 WHEN 'on' THEN 'force_custom_plan' ELSE 'force_generic_plan' END, false)
WHERE pg_backend_pid() = $5::int8`

	sqlCount = `
SELECT count(*) FROM {table}
WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp` + sqlStill + `$3` + sqlThen

	// How many transactions have written to the server, more or less: each takes the
	// next number.
	sqlWrites = `SELECT ` + sqlXmax
	sqlXmax   = `pg_snapshot_xmax(pg_current_snapshot())::text::bigint`

	// Expiration windows.
	sqlOldest = `
SELECT min({expiration})::timestamp FROM {table}
WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp` + sqlStill + `$3` + sqlThen

	// The expirations at which the next $4 batches of $3 rows end, and how many rows
	// each has: NULL where the row before its end has the same expiration, so that it
	// has fewer than $3 and nobody knows how many. The last one has no end but the
	// range's own. Where more rows than a batch share one expiration the last end is
	// the one before it.
	sqlEnds = `
WITH RECURSIVE batch (number, start, ends) AS (
    SELECT 1, $1::timestamp, ARRAY(
        SELECT {expiration}::timestamp FROM {table} AS token
        WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp
        ORDER BY token.{expiration} OFFSET $3 - 1 LIMIT 2)
    UNION ALL
    SELECT number + 1, ends[2], ARRAY(
        SELECT {expiration}::timestamp FROM {table} AS token
        WHERE {expiration} >= ends[2] AND {expiration} < $2
        ORDER BY token.{expiration} OFFSET $3 - 1 LIMIT 2)
    FROM batch
    WHERE ends[2] > start AND number < $4
)
SELECT ends[2],
       CASE WHEN ends[2] IS NULL THEN (
           SELECT count(*) FROM {table}
           WHERE {expiration} >= start AND {expiration} < $2)
       WHEN ends[1] < ends[2] THEN $3 END
FROM batch ORDER BY number`

	// Where most rows of a window are in a sample of $3 percent of the pages: the first
	// page of that part of the table, of which each has $4 pages.
	sqlSample = `
SELECT coalesce((
    SELECT (ctid::text::point)[0]::bigint / $4::bigint * $4::bigint
    FROM {table} TABLESAMPLE SYSTEM ($3)
    WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp
    GROUP BY 1 ORDER BY count(*) DESC LIMIT 1), 0)`

	// Rows as they are met in reading the table: at most so many, for at most so many
	// milliseconds. A DO takes no parameters; all four are the function's own. CURRENT OF
	// does not look at the expiration again, where another session has changed the row.
	sqlBeginScan  = `SELECT count(*) FROM (SELECT) AS always WHERE true` + sqlUnchanged + `$1` + sqlThenCount
	sqlDeleteScan = `
DO $$
DECLARE
    met CURSOR FOR SELECT {expiration} FROM {table} WHERE {expiration} >= '%[1]s' AND {expiration} < '%[2]s';
    token record;
    expired timestamp;
    gone bigint := 0;
    stay bigint := 0;
    everything boolean := false;
    counted bigint;
    state text := '';
    cause text := '';
BEGIN
    OPEN met;
    LOOP
        counted := NULL;
        BEGIN
            FETCH met INTO token;
        EXCEPTION WHEN query_canceled THEN -- what is gone stays so
            IF gone = 0 THEN RAISE; END IF;
            EXIT;
        END;
        everything := NOT FOUND;
        EXIT WHEN everything;
        BEGIN%[5]s
            DELETE FROM {table} WHERE CURRENT OF met RETURNING {expiration} INTO expired;
            IF expired >= '%[2]s' THEN
                RAISE serialization_failure USING MESSAGE = 'a row has changed meanwhile';
            END IF;
            gone := gone + CASE WHEN expired IS NULL THEN 0 ELSE 1 END;%[6]s
        END;
        EXIT WHEN gone >= %[3]d OR clock_timestamp() > statement_timestamp() + interval '%[4]d ms';
    END LOOP;
    PERFORM set_config('edfi_token_purge.gone', gone::text, true);
    PERFORM set_config('edfi_token_purge.stay', json_build_object('Gone', gone, 'Stay', stay, 'All', everything, 'State', state, 'Cause', cause)::text, true);
END
$$`

	// Where a row resists, each has a transaction of its own within the batch's, so that
	// all others go: the server counts what it has undone too, which is taken off again.
	// It waits for no lock, as there may be many.
	sqlScanRow = `
            PERFORM set_config('lock_timeout', '10ms', true);
            counted := (` + sqlScanNet + `);`
	sqlScanResists = `
        EXCEPTION
            WHEN query_canceled THEN
                IF gone = 0 THEN RAISE; END IF;` + sqlScanUndone + `
                EXIT;
            WHEN others THEN
                IF SQLSTATE LIKE '53%%' THEN RAISE; END IF;
                stay := stay + 1;
                IF state <> '55P03' THEN -- a locked row may go later
                    state := SQLSTATE;
                    cause := SQLERRM;
                END IF;` + sqlScanUndone
	sqlScanUndone = `
                PERFORM set_config('edfi_token_purge.before', (current_setting('edfi_token_purge.before')::bigint + coalesce((` + sqlScanNet + `) - counted, 0))::text, true);`
	sqlScanNet = `SELECT ` + sqlNet + ` FROM unnest(%[1]s::oid[]) AS leaf`

	// What it came to, and why a row stays.
	sqlScanned = `SELECT current_setting('edfi_token_purge.stay')`

	// What may keep deleted rows from being cleared away, the oldest first, and the
	// statement that ends it: an old snapshot of a session in this database, of one on a
	// standby that reports it, a slot whose standby is gone, a transaction that was prepared
	// and left.
	sqlHolder = `
SELECT told.what, told.mend FROM (
    SELECT age(backend_xmin) AS transactions, coalesce(application_name, '') AS name,
           CASE backend_type WHEN 'walsender' THEN 'a session on the standby %2$L'
                             ELSE 'session %1$s of application %2$L' END AS what,
           CASE backend_type WHEN 'walsender' THEN ` + sqlOnStandby + `
                             ELSE 'SELECT pg_terminate_backend(%1$s);' END AS mend, pid
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND (datname = current_database() OR datname IS NULL)
    UNION ALL
    SELECT age(xmin), slot_name,
           CASE WHEN active THEN 'a session on the standby of replication slot %2$L' ELSE 'replication slot %2$L, which nobody uses' END,
           CASE WHEN active THEN ` + sqlOnStandby + ` ELSE 'SELECT pg_drop_replication_slot(%2$L);' END, NULL
    FROM pg_replication_slots WHERE xmin IS NOT NULL
    UNION ALL
    SELECT age(transaction), gid, 'prepared transaction %2$L', 'ROLLBACK PREPARED %2$L;', NULL
    FROM pg_prepared_xacts WHERE database = current_database()) AS holder (transactions, name, what, mend, pid),
    LATERAL (SELECT format(what, pid, name), format(mend, pid, name)) AS told (what, mend)
ORDER BY transactions DESC LIMIT 1`

	sqlOnStandby = `'on the standby: SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_xmin IS NOT NULL ORDER BY age(backend_xmin) DESC LIMIT 1;'`

	// sqlLockHolder tells of the oldest transaction with a lock on one of the tables that a
	// delete waits for, and how to end it. Everybody may see locks, transactions and what
	// applications call themselves. Our own other connections are left out, and locks that
	// no delete waits for.
	sqlLockHolder = `
SELECT coalesce('prepared transaction ' || quote_literal(p.gid),
                format('session %s of %s', l.pid, coalesce(nullif(a.application_name, ''), a.usename, 'another user'))),
       coalesce('ROLLBACK PREPARED ' || quote_literal(p.gid) || ';', format('SELECT pg_terminate_backend(%s);', l.pid))
FROM pg_locks l
LEFT JOIN pg_locks x ON x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid' AND x.granted
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.relation = ANY ($1)
  AND a.application_name IS DISTINCT FROM current_setting('application_name')
ORDER BY age(x.transactionid) DESC NULLS LAST LIMIT 1`

	sqlDelete = `
DELETE FROM {table}
WHERE {expiration} >= $1::timestamp AND {expiration} < ` + sqlUntil + `$3` + sqlUntilThen

	// Physical ranges. A range of ctid is read in physical order, so that the
	// end of a batch needs no sort. Were the order another one, batches would
	// differ in size and nothing else.
	//
	// PostgreSQL 13 can't read a range of ctid, only a list: there each of the
	// statements also names, by sqlPlaces, every place that a row could have.
	sqlPages = `SELECT pg_relation_size($1::oid) / current_setting('block_size')::int`

	sqlOldestPhysical = `
SELECT min({expiration})::timestamp FROM {table}
WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp AND ctid >= $3 AND ctid < $4` + sqlStill + `$5` + sqlThen

	sqlCountPhysical = `
SELECT count(*) FROM {table}
WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp AND ctid >= $3 AND ctid < $4`

	sqlEndPhysical = `
SELECT ctid FROM {table}
WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp AND ctid >= $3 AND ctid < $4
OFFSET $5 LIMIT 1`

	// The pages of the table, $3, where by a sample of about $4 of them at least half of its
	// rows are in a window, and $5 for each page; else 0.
	sqlMostly = `
SELECT CASE WHEN count(*) FILTER (WHERE {expiration} >= $1::timestamp AND {expiration} < $2::timestamp) >= greatest(count(*) / 2, $4 * $5)
       THEN pg_relation_size($3::oid) / current_setting('block_size')::int ELSE 0 END
FROM {table} TABLESAMPLE SYSTEM (least(100, $4 * 100.0 * current_setting('block_size')::int / greatest(pg_relation_size($3::oid), 1)))`

	sqlDeletePhysical = `
DELETE FROM {table}
WHERE ctid >= $3 AND ctid < $4 AND {expiration} >= $1::timestamp AND {expiration} < ` + sqlUntil + `$5` + sqlUntilThen

	sqlPlaces = `ctid = ANY (ARRAY(
    SELECT format('(%s,%s)', page, place)::tid
    FROM generate_series(($3::tid::text::point)[0]::bigint, ($4::tid::text::point)[0]::bigint) AS page,
         generate_series(1, (current_setting('block_size')::int - 24) / 28) AS place)) AND `
)
