-- find_steps: steps of one workflow in the order they were added. Params: id; after, a position or null; limit; and what narrows it,
-- null each: states, with what `state` of the row is for them in settles; search, a pattern of ILIKE; positions. Returns: name,
-- position.
SELECT step.name, step.position
FROM /* schema */workflow_nodes AS step
WHERE step.workflow_id = %(id)s AND step.position > coalesce(%(after)s::integer, -1)
  AND (%(positions)s::integer[] IS NULL OR step.position = ANY(%(positions)s::integer[]))
  AND (%(settles)s::text[] IS NULL OR step.state = ANY(%(settles)s::text[]))
  AND (%(search)s::text IS NULL OR step.name ILIKE %(search)s::text OR step.function ILIKE %(search)s::text)
  -- A job is looked up only for a step that has not settled.
  AND (%(states)s::text[] IS NULL OR /* state */ = ANY(%(states)s::text[]))
ORDER BY step.position LIMIT %(limit)s
