-- read_unlogged: tables that a crash of the server would empty, of those that must survive it. Params: tables text[], all but Oban's
-- leaders and producers. Returns: relation, command. Empty when all is well.
SELECT class.relname AS relation, format('ALTER TABLE %%s SET LOGGED', class.oid::regclass) AS command
FROM pg_class AS class
WHERE class.relnamespace = to_regnamespace('"/* prefix */"') AND class.relname = ANY(%(durable)s::text[]) AND class.relpersistence <> 'p'
ORDER BY class.relname
