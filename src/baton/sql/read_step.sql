-- read_step: what a list of steps leaves out of one. Params: id; name, or position and null; characters, where texts are cut. At most
-- one row. Sizes are those of the whole texts, in characters.
SELECT
  step.id AS step_id,
  step.name,
  left(arguments.text, %(characters)s::integer) AS arguments,
  length(arguments.text) AS arguments_size,
  CASE WHEN step_job.ours THEN jsonb_path_query_array(job.args, '$.refs[0 to 99]') END AS refs,
  left(result.text, %(characters)s::integer) AS result,
  length(result.text) AS result_size,
  coalesce((
    SELECT jsonb_agg(jsonb_build_array(error.value -> 'attempt', error.value -> 'at', left(error.value ->> 'error', %(characters)s::integer))
                     ORDER BY error.place)
    FROM jsonb_array_elements(failures.list) WITH ORDINALITY AS error (value, place)
    WHERE error.place > jsonb_array_length(failures.list) - 20
  ), '[]') AS errors,
  jsonb_array_length(failures.list) AS attempts_failed,
  EXISTS (SELECT FROM /* schema */workflow_debug_logs AS log WHERE log.step_id = step.id AND log.workflow_id = step.workflow_id) AS captured,
  job.worker,
  job.attempted_by[1] AS node
FROM /* schema */workflow_nodes AS step
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
CROSS JOIN LATERAL (SELECT job.worker = 'baton.StepWorker' AS ours) AS step_job
-- Whoever may write a job may have written anything there.
CROSS JOIN LATERAL (SELECT CASE jsonb_typeof(job.errors) WHEN 'array' THEN job.errors ELSE '[]' END AS list) AS failures
-- Written out once, however often it is used.
LEFT JOIN LATERAL (
  SELECT (CASE WHEN step_job.ours THEN job.args -> 'args' ELSE job.args END)::text AS text OFFSET 0
) AS arguments ON true
LEFT JOIN LATERAL (SELECT (step.result -> 'value')::text AS text OFFSET 0) AS result ON true
WHERE step.workflow_id = %(id)s
  AND CASE WHEN %(name)s::text IS NULL THEN step.position = %(position)s::integer ELSE step.name = %(name)s::text END
