-- prune_jobs: delete jobs that ended longer ago than max_age seconds, at most limit, the oldest first, as Oban does. A job that
-- is being retried meanwhile stays: its row is locked, or looked at again once it is ours.
-- Params: max_age, limit. Returns: how many.
WITH old AS (
  SELECT job.id FROM /* schema */oban_jobs AS job
  WHERE (job.state = 'completed' AND job.completed_at <= timezone('UTC', now()) - make_interval(secs => %(max_age)s))
     OR (job.state = 'cancelled' AND job.cancelled_at <= timezone('UTC', now()) - make_interval(secs => %(max_age)s))
     OR (job.state = 'discarded' AND job.discarded_at <= timezone('UTC', now()) - make_interval(secs => %(max_age)s))
  ORDER BY job.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), pruned AS (
  DELETE FROM /* schema */oban_jobs AS job USING old WHERE job.id = old.id RETURNING 1
)
SELECT count(*) FROM pruned
