-- S1 gate: an attempt started though a dependency had not settled in a way that the step accepts, by what it saw itself.
-- A retry of the run takes settled dependencies back, so an attempt claimed before the end of one may see anything.
SELECT attempt.run, attempt.step, 'started while ' || seen.key || ' was ' || seen.value
FROM lab.attempts AS attempt
JOIN workflow_nodes AS step ON step.job_id = attempt.job_id
CROSS JOIN jsonb_each_text(attempt.sees) AS seen
WHERE NOT CASE
    WHEN seen.value IN ('held', 'released') THEN false
    WHEN step.runs_on <> 'success' OR seen.value = 'completed' THEN true
    WHEN seen.value = 'discarded' THEN step.ignore_discarded
    ELSE step.ignore_cancelled END
  AND NOT EXISTS (
    SELECT FROM lab.actions AS action WHERE action.run = attempt.run AND action.what = 'retry'
      AND action.called_at <= attempt.started_at
      AND coalesce(action.answered_at, 'infinity') >= attempt.attempted_at AT TIME ZONE 'UTC')
