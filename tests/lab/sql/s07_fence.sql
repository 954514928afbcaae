-- S7 fence: a step completed under an attempt that had not ended by then, or with another value than that attempt's.
SELECT step.workflow_id, step.name, 'completed by attempt ' || step.attempt || ', of which the witness knows '
       || coalesce(attempt.phase, 'no end') || CASE WHEN attempt.phase = 'end' THEN ' with another value' ELSE '' END
FROM workflow_nodes AS step
LEFT JOIN lab.attempts AS attempt
  ON attempt.job_id = step.job_id AND attempt.attempted_at = step.started_at AT TIME ZONE 'UTC'
WHERE step.state = 'completed' AND step.job_id > 0
  AND (attempt.phase IS DISTINCT FROM 'end' OR attempt.value IS DISTINCT FROM step.result ->> 'value')
