-- stage_jobs: make due jobs of these queues available, as Oban does. Params: queues; limit; before, UTC without zone, or null for
-- now. Returns: each queue that has something to do, and how many of its jobs were staged. The last SELECT sees the table
-- as it was before, so what was staged is asked for as well.
WITH due AS (
  SELECT job.id FROM /* schema */oban_jobs AS job
  WHERE job.state IN ('scheduled', 'retryable') AND job.queue = ANY(%(queues)s)
    AND job.scheduled_at <= coalesce(%(before)s::timestamp, timezone('UTC', now()))
  ORDER BY job.scheduled_at, job.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), staged AS (
  UPDATE /* schema */oban_jobs AS job SET state = 'available' FROM due WHERE job.id = due.id RETURNING job.queue
)
SELECT queue.name, (SELECT count(*) FROM staged WHERE staged.queue = queue.name) AS staged
FROM unnest(%(queues)s::text[]) AS queue (name)
WHERE queue.name IN (SELECT staged.queue FROM staged)
   OR EXISTS (SELECT FROM /* schema */oban_jobs AS job WHERE job.state = 'available' AND job.queue = queue.name)
