-- read_unfinished: live runs of which no step is left to settle. Returns: count (100 at most), id of one. Empty when all is well.
SELECT count(*) AS count, min(id::text) AS id
FROM (
  SELECT workflow.id FROM /* schema */workflows AS workflow
  WHERE workflow.finished_at IS NULL AND NOT EXISTS (
    SELECT FROM /* schema */workflow_nodes AS step WHERE step.workflow_id = workflow.id AND step.state IN ('held', 'released'))
  LIMIT 100
) AS unfinished
HAVING count(*) > 0
