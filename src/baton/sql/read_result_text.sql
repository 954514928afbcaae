-- read_result_text: what one step stored, as text. Params: id; name, or position and null. Returns: name, result or null. At most one
-- row.
SELECT step.name, (step.result -> 'value')::text
FROM /* schema */workflow_nodes AS step
WHERE step.workflow_id = %(id)s
  AND CASE WHEN %(name)s::text IS NULL THEN step.position = %(position)s::integer ELSE step.name = %(name)s::text END
