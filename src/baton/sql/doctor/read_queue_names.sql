-- read_queue_names: queues of unfinished jobs with names that break a notification: quotes and backslashes end Oban's listening, and one that
-- is too long makes the insert fail. Returns: queue (its beginning), bytes. Empty when all is well.
SELECT DISTINCT left(names.queue, 60) AS queue, octet_length(names.queue) AS bytes
FROM unnest(ARRAY['available', 'scheduled', 'retryable', 'executing', 'suspended']) AS live (state)
CROSS JOIN LATERAL (
  WITH RECURSIVE queues AS (
    (SELECT queue FROM /* schema */oban_jobs AS job WHERE job.state = live.state::/* schema */oban_job_state ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT job.queue FROM /* schema */oban_jobs AS job
            WHERE job.state = live.state::/* schema */oban_job_state AND job.queue > queues.queue ORDER BY job.queue LIMIT 1)
    FROM queues WHERE queues.queue IS NOT NULL
  )
  SELECT queues.queue FROM queues WHERE queues.queue IS NOT NULL
) AS names
WHERE names.queue ~ '["\\[:cntrl:]]' OR octet_length(names.queue) > 1000
ORDER BY 1 LIMIT 20
