-- read_transactions: transactions in this database that have been open for too long, the oldest first; vacuum cannot pass them.
-- Params: idle (seconds, for those that do nothing), busy (for those that do). Returns: pid, usename, application, state, seconds.
-- Empty when all is well.
SELECT pid, quote_ident(usename) AS usename, left(coalesce(application_name, ''), 60) AS application, state,
       extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND xact_start < clock_timestamp() - make_interval(secs => CASE WHEN state LIKE 'idle in transaction%%' THEN %(idle)s ELSE %(busy)s END)
ORDER BY xact_start LIMIT 20
