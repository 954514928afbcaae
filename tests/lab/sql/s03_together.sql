-- S3 together: completed without the result of its own code, a result without completion, or not the attempt that its job had.
SELECT step.workflow_id, step.name, step.state || ' with the result ' || coalesce(left(step.result::text, 80), 'none')
FROM workflow_nodes AS step
WHERE (step.state = 'completed') <> (step.result IS NOT NULL) OR step.result ? 'foreign'
UNION ALL
SELECT step.workflow_id, step.name, 'completed by attempt ' || step.attempt || ', its job by ' || job.attempt
FROM workflow_nodes AS step JOIN oban_jobs AS job ON job.id = step.job_id
WHERE step.state = 'completed' AND job.state = 'completed' AND step.reruns = 0
  AND (step.attempt <> job.attempt OR step.started_at AT TIME ZONE 'UTC' <> job.attempted_at)
