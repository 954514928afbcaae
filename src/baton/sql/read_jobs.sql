-- read_jobs: Oban's jobs of one workflow's steps, in the order these were added. Params: id; after, a position or null; limit.
SELECT job.id, job.state, job.queue, job.worker, job.attempt, job.max_attempts, job.priority, job.args, job.meta, job.errors,
       job.tags, job.attempted_by, job.inserted_at, job.attempted_at, job.cancelled_at, job.completed_at, job.discarded_at,
       job.scheduled_at
FROM /* schema */workflow_nodes AS step
JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
WHERE step.workflow_id = %(id)s AND step.position > coalesce(%(after)s::integer, -1)
ORDER BY step.position LIMIT %(limit)s
