-- read_locks: transactions that hold locks on our tables for too long: strong ones, which stop every worker, and weak ones, which stop
-- a migration. Params: tables text[], strong and weak (seconds). Returns: pid, relation, mode, seconds, level, application. Empty when all is well.
SELECT DISTINCT ON (held.pid) held.pid, class.relname AS relation, held.mode,
       extract(epoch FROM clock_timestamp() - session.xact_start)::bigint AS seconds,
       left(coalesce(session.application_name, ''), 60) AS application,
       CASE WHEN held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') THEN 'error' ELSE 'warning' END AS level
FROM pg_locks AS held
JOIN pg_class AS class ON class.oid = held.relation
JOIN pg_stat_activity AS session ON session.pid = held.pid
WHERE held.granted AND held.locktype = 'relation' AND held.pid <> pg_backend_pid()
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND class.relnamespace = to_regnamespace('"/* prefix */"') AND class.relname = ANY(%(tables)s::text[])
  -- Reading locks nobody out, and vacuum gives way.
  AND held.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
  AND session.xact_start < clock_timestamp() - make_interval(secs => CASE
    WHEN held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') THEN %(strong)s ELSE %(weak)s END)
ORDER BY held.pid, level, held.mode LIMIT 20
