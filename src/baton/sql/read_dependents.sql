-- read_dependents: steps that wait for one step, in the order they were added. Params: step_id, limit. Returns: position, name, state,
-- and how many there are in all.
SELECT step.position, step.name,
       /* state */,
       step.count
FROM (
  SELECT step.position, step.name, step.state, step.job_id, count(*) OVER () AS count
  FROM /* schema */workflow_edges AS edge JOIN /* schema */workflow_nodes AS step ON step.id = edge.dependent_id
  WHERE edge.dependency_id = %(step_id)s ORDER BY step.position LIMIT %(limit)s
) AS step
ORDER BY step.position
