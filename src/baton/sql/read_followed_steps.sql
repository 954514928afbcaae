-- read_followed_steps: steps as read_steps gives them, each with its id and a mark that is another one whenever a row
-- it is read from was changed. Params: ids bigint[]. In no order; an id that there is not gives nothing.
SELECT
  step.id AS step_id,
  step.workflow_id,
  concat_ws(' ', step.xmin, job.xmin, progress.xmin) AS mark,
/* steps */
WHERE step.id = ANY(%(ids)s::bigint[])
