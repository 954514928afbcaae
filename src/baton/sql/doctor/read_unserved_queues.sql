-- read_unserved_queues: queues in which jobs have been available for a while and that nobody works on, or on which all workers are paused.
-- Params: live, waiting (seconds). Returns: queue, count (1,000 at most), seconds of the oldest, paused (how many workers are). Empty when all is well.
WITH RECURSIVE queues AS (
  -- From name to name through the index, however many jobs there are.
  (SELECT queue FROM /* schema */oban_jobs WHERE state = 'available' ORDER BY queue LIMIT 1)
  UNION ALL
  SELECT (SELECT job.queue FROM /* schema */oban_jobs AS job WHERE job.state = 'available' AND job.queue > queues.queue ORDER BY job.queue LIMIT 1)
  FROM queues WHERE queues.queue IS NOT NULL
), served AS (
  SELECT queue, bool_and(meta -> 'paused' = 'true') AS paused, count(*) AS workers FROM /* schema */oban_producers
  WHERE updated_at > timezone('UTC', clock_timestamp()) - make_interval(secs => %(live)s) GROUP BY queue
)
SELECT queues.queue, waiting.count, waiting.seconds, coalesce(served.workers, 0) AS paused
FROM queues LEFT JOIN served ON served.queue = queues.queue
CROSS JOIN LATERAL (
  SELECT count(*) AS count, max(extract(epoch FROM timezone('UTC', clock_timestamp()) - job.scheduled_at))::bigint AS seconds
  FROM (SELECT scheduled_at FROM /* schema */oban_jobs WHERE state = 'available' AND oban_jobs.queue = queues.queue LIMIT 1000) AS job
) AS waiting
WHERE queues.queue IS NOT NULL AND (served.queue IS NULL OR served.paused) AND waiting.seconds > %(waiting)s
ORDER BY waiting.count DESC LIMIT 20
