-- S14 cancel: an attempt was claimed after the answer that its run, its step or its job was cancelled, or while its run was paused.
SELECT attempt.run, attempt.step, 'started after the answer to ' || action.what
FROM lab.attempts AS attempt
JOIN lab.actions AS action ON action.run = attempt.run AND action.answered_at < attempt.attempted_at AT TIME ZONE 'UTC'
JOIN workflow_nodes AS step ON step.job_id = attempt.job_id
WHERE CASE action.what
    WHEN 'cancel' THEN action.answer = 'cancelled' AND step.runs_on <> 'always'
    WHEN 'cancel_step' THEN action.answer = 'cancelled' AND action.step = attempt.step
    WHEN 'oban_cancel' THEN action.answer = 'cancelled' AND action.step = attempt.step
    WHEN 'pause' THEN action.answer = 'executing' ELSE false END
  AND NOT EXISTS (
    SELECT FROM lab.actions AS undone WHERE undone.run = action.run AND undone.id > action.id
      AND undone.called_at <= attempt.attempted_at AT TIME ZONE 'UTC'
      AND undone.what = ANY(CASE action.what WHEN 'pause' THEN '{resume,retry}' ELSE '{retry,oban_retry}' END::text[]))
