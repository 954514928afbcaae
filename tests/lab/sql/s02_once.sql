-- S2 once: a step left a settled state without a retry of its run, or was settled again without a retry of its job.
SELECT move.run, move.name, move.was || ' became ' || move.became
FROM lab.moves AS move
WHERE move.was IN ('completed', 'cancelled', 'discarded', 'skipped') AND NOT EXISTS (
  SELECT FROM lab.actions AS action
  WHERE action.run = move.run AND action.what = 'retry' AND action.called_at <= move.at)
UNION ALL
SELECT step.workflow_id, step.name, 'was acked ' || step.reruns || ' times after it had settled'
FROM workflow_nodes AS step
WHERE step.reruns > 0 AND NOT EXISTS (
  SELECT FROM lab.actions AS action WHERE action.run = step.workflow_id AND action.what = 'oban_retry')
