-- read_autovacuum: where autovacuum does not look. Params: tables text[]. Returns: what, command that lets it. Empty when all is well.
SELECT name || ' is off' AS what, 'ALTER SYSTEM SET ' || name || ' = on; SELECT pg_reload_conf()' AS command
FROM pg_settings WHERE name IN ('autovacuum', 'track_counts') AND setting = 'off'
UNION ALL
SELECT 'it is off for table ' || class.relname, format('ALTER TABLE %%s RESET (autovacuum_enabled)', class.oid::regclass)
FROM pg_class AS class
WHERE class.relnamespace = to_regnamespace('"/* prefix */"') AND class.relname = ANY(%(tables)s::text[])
  AND EXISTS (SELECT FROM unnest(class.reloptions) AS option WHERE option IN ('autovacuum_enabled=false', 'autovacuum_enabled=off'))
