-- read_dependency_failures: which of the steps that a step waits for ended cancelled or discarded. Params: step_id. Returns: name, error.
SELECT dependency.name, dependency.error
FROM /* schema */workflow_edges AS edge
JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
WHERE edge.dependent_id = %(step_id)s AND dependency.state IN ('cancelled', 'discarded')
ORDER BY dependency.position
