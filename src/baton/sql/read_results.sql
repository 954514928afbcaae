-- read_results: what the steps of a workflow stored. Params: id; names text[], null for all. Returns: name, function, result.
SELECT step.name, step.function, (step.result -> 'value')::text
FROM /* schema */workflow_nodes AS step
WHERE step.workflow_id = %(id)s AND step.result IS NOT NULL
  AND (%(names)s::text[] IS NULL OR step.name = ANY(%(names)s::text[]))
ORDER BY step.position
