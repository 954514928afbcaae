-- read_overdue: runs whose deadline has passed and that nobody has ended. Params: seconds. Returns: count (100 at most), id of one, seconds.
-- Empty when all is well.
SELECT count(*) AS count, min(id::text) AS id, max(extract(epoch FROM clock_timestamp() - deadline_at))::bigint AS seconds
FROM (
  SELECT id, deadline_at FROM /* schema */workflows
  WHERE deadline_at < clock_timestamp() - make_interval(secs => %(seconds)s) AND finished_at IS NULL AND cancel_requested_at IS NULL LIMIT 100
) AS overdue
HAVING count(*) > 0
