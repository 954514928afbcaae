-- read_dependency_results: what the steps that a step waits for have stored.
-- Params: step_id; names text[], null for all. Returns: name, result as {"value": ...}. One that stored nothing is left out.
SELECT dependency.name, dependency.result::text
FROM /* schema */workflow_edges AS edge
JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
WHERE edge.dependent_id = %(step_id)s
  AND dependency.result IS NOT NULL
  AND (%(names)s::text[] IS NULL OR dependency.name = ANY(%(names)s::text[]))
