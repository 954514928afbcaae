-- read_deadlocks: deadlocks in this database, if there are more than some a day. Params: a_day. Returns: deadlocks, since. Empty when all is well.
SELECT deadlocks, to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC' AS since
FROM (
  SELECT deadlocks, coalesce(stats_reset, pg_postmaster_start_time()) AS since FROM pg_stat_database WHERE datname = current_database()
) AS counted
WHERE deadlocks > %(a_day)s * greatest(1, extract(epoch FROM clock_timestamp() - since) / 86400)
