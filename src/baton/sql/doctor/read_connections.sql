-- read_connections: limits on connections that are nearly used up. Params: share (from 0 to 1). Returns: whose, used, allowed, level.
-- Empty when all is well.
SELECT whose, used, allowed, CASE WHEN used >= 0.95 * allowed THEN 'error' ELSE 'warning' END AS level
FROM (
  SELECT 'the server' AS whose, (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL) AS used,
         current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer AS allowed
  UNION ALL
  SELECT 'this database', (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()), datconnlimit
  FROM pg_database WHERE datname = current_database()
  UNION ALL
  SELECT 'role ' || rolname, (SELECT count(*) FROM pg_stat_activity WHERE usename = rolname), rolconnlimit
  FROM pg_roles WHERE rolname = current_user
) AS limits
WHERE allowed > 0 AND used >= %(share)s * allowed
