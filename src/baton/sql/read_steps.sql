-- read_steps: the steps of one workflow in the order they were added, without results. Params: id; names text[], null for all.
SELECT
/* steps */
WHERE step.workflow_id = %(id)s AND (%(names)s::text[] IS NULL OR step.name = ANY(%(names)s::text[]))
ORDER BY step.position
