-- read_cancelling: steps that were asked to end long ago and still run. Params: seconds. Returns: run, step, seconds. Empty when all is well.
SELECT step.workflow_id::text AS run, step.name AS step, extract(epoch FROM clock_timestamp() - step.cancel_requested_at)::bigint AS seconds
FROM /* schema */oban_jobs AS job JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id
WHERE job.state = 'executing' AND step.state = 'released' AND step.cancel_requested_at < clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY step.cancel_requested_at LIMIT 5
