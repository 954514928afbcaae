-- find_changed_steps: which of these steps are not any more as their mark says; see read_followed_steps. A step that is gone is one
-- of them. Params: ids bigint[], marks text[]. Returns: id of each.
SELECT known.id
FROM unnest(%(ids)s::bigint[], %(marks)s::text[]) AS known (id, mark)
LEFT JOIN /* schema */workflow_nodes AS step ON step.id = known.id
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
LEFT JOIN /* schema */workflow_progress AS progress ON progress.step_id = step.id AND progress.workflow_id = step.workflow_id
  AND progress.attempt >= coalesce(step.attempt, job.attempt, 0)
WHERE concat_ws(' ', step.xmin, job.xmin, progress.xmin) <> known.mark
