-- S10 outcome: a run's outcome is not what the states of its steps make it.
SELECT workflow.id, NULL, 'ended ' || workflow.outcome || ' instead of ' || expected.outcome
FROM workflows AS workflow
CROSS JOIN LATERAL (SELECT CASE
  WHEN workflow.cancel_cause = 'request' THEN 'cancelled'
  WHEN workflow.cancel_cause = 'deadline' OR EXISTS (
    SELECT FROM workflow_nodes AS step
    WHERE step.workflow_id = workflow.id AND step.state IN ('cancelled', 'discarded') AND (
      SELECT bool_and(CASE step.state WHEN 'cancelled' THEN waiting.ignore_cancelled ELSE waiting.ignore_discarded END)
      FROM workflow_edges AS edge JOIN workflow_nodes AS waiting ON waiting.id = edge.dependent_id
      WHERE edge.dependency_id = step.id AND waiting.runs_on = 'success') IS NOT TRUE) THEN 'failed'
  ELSE 'completed' END AS outcome) AS expected
WHERE workflow.finished_at IS NOT NULL AND workflow.outcome <> expected.outcome
