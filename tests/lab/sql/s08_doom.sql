-- S8 doom: a step that waits on though a dependency ended as it does not accept, or that was doomed by none.
SELECT step.workflow_id, step.name, step.state || ' though ' || cause.name || ' was ' || cause.state
FROM workflow_nodes AS step
JOIN workflow_edges AS edge ON edge.dependent_id = step.id
JOIN workflow_nodes AS cause ON cause.id = edge.dependency_id
WHERE step.state IN ('held', 'released', 'completed', 'discarded') AND step.runs_on = 'success'
  AND CASE cause.state WHEN 'discarded' THEN NOT step.ignore_discarded
                       WHEN 'cancelled' THEN NOT step.ignore_cancelled
                       WHEN 'skipped' THEN NOT step.ignore_cancelled ELSE false END
UNION ALL
SELECT step.workflow_id, step.name, step.state || ' by a dependency, and none of them warrants that'
FROM workflow_nodes AS step
WHERE step.doomed AND step.runs_on = 'success' AND NOT EXISTS (
  SELECT FROM workflow_edges AS edge JOIN workflow_nodes AS cause ON cause.id = edge.dependency_id
  WHERE edge.dependent_id = step.id
    AND CASE cause.state WHEN 'discarded' THEN NOT step.ignore_discarded
                         WHEN 'cancelled' THEN NOT step.ignore_cancelled
                         WHEN 'skipped' THEN NOT step.ignore_cancelled ELSE false END)
