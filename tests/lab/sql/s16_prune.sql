-- S16 prune: a pruned run left something behind. (One that was not pruned and has gone is S12's.)
SELECT flow.run, NULL, 'was pruned and left ' || remains.what
FROM lab.flows AS flow
CROSS JOIN LATERAL (
  SELECT 'steps' AS what FROM workflow_nodes AS step WHERE step.workflow_id = flow.run
  UNION SELECT 'the run' FROM workflows AS workflow WHERE workflow.id = flow.run
  UNION SELECT 'completions' FROM workflow_completions AS completion WHERE completion.workflow_id = flow.run
  UNION SELECT 'progress' FROM workflow_progress AS progress WHERE progress.workflow_id = flow.run
  UNION SELECT 'streams' FROM workflow_streams AS stream WHERE stream.workflow_id = flow.run
  UNION SELECT 'deliveries' FROM workflow_deliveries AS delivery WHERE delivery.workflow_id = flow.run
  UNION SELECT 'edges' FROM lab.moves AS move JOIN workflow_edges AS edge ON edge.dependent_id = move.step_id
        WHERE move.run = flow.run
) AS remains
WHERE flow.pruned_at IS NOT NULL
