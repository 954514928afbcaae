-- baton_workflows: one row per run. Public: columns are only ever added, at the end.
-- Whoever may read the view needs no rights on the tables. It leaves no row out, so it need not be a barrier.
CREATE OR REPLACE VIEW /* schema */baton_workflows AS
SELECT
  workflow.id AS workflow_id,
  workflow.name,
  workflow.key,
  coalesce(workflow.outcome, 'executing') AS state,
  workflow.generation,
  workflow.steps,
  workflow.unsettled,
  workflow.failed,
  workflow.inserted_at,
  workflow.finished_at,
  -- Of the present generation, as is the rest.
  extract(epoch FROM coalesce(workflow.finished_at, now()) - coalesce(workflow.revived_at, workflow.inserted_at))::double precision
    AS duration_seconds,
  workflow.paused_at,
  workflow.cancel_requested_at,
  workflow.cancel_reason,
  workflow.deadline_at,
  workflow.rerun_of
FROM /* schema */workflows AS workflow
