-- read_bloat: tables of ours with more dead rows than living ones, and with more than some. Params: tables text[], dead.
-- Returns: relation, dead, live, command. Empty when all is well.
SELECT relname AS relation, n_dead_tup AS dead, n_live_tup AS live, format('VACUUM (ANALYZE) %%s', relid::regclass) AS command
FROM pg_stat_user_tables
WHERE schemaname = '/* prefix */' AND relname = ANY(%(tables)s::text[]) AND n_dead_tup > %(dead)s AND n_dead_tup > n_live_tup
ORDER BY n_dead_tup DESC
