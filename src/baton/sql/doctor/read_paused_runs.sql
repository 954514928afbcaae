-- read_paused_runs: runs that have been paused for long. Params: seconds. Returns: count (1,000 at most), id of the first, since. Empty when all is well.
SELECT count(*) AS count, (array_agg(id::text ORDER BY paused_at))[1] AS id,
       to_char(min(paused_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC' AS since
FROM (
  SELECT id, paused_at FROM /* schema */workflows
  WHERE finished_at IS NULL AND paused_at < clock_timestamp() - make_interval(secs => %(seconds)s) LIMIT 1000
) AS paused
HAVING count(*) > 0
