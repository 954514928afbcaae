-- find_steps_by: steps of one workflow by when they began or how long they took; those that have not begun, or neither run nor have
-- settled, last, in the order they were added. Params: as in find_steps; order_by, 'started_at' or 'duration'; after, with the place of
-- that step in the order, null both; moment, up to which durations are, null for now. Returns: name, position, place, moment.
SELECT found.name, found.position, found.place, found.moment
FROM (
  SELECT step.name, step.position, given.moment,
         coalesce(CASE %(order_by)s::text
           WHEN 'started_at' THEN extract(epoch FROM began.at)
           ELSE -greatest(extract(epoch FROM least(step.settled_at, given.moment) - began.at), 0)
         END::double precision, 'infinity') AS place
  FROM (SELECT coalesce(%(moment)s::timestamptz, now()) AS moment) AS given
  CROSS JOIN /* schema */workflow_nodes AS step
  -- A job is looked up only for a step that has not settled.
  CROSS JOIN LATERAL (
    SELECT CASE WHEN step.state <> 'released' THEN step.started_at ELSE coalesce(step.started_at, (
      SELECT job.attempted_at AT TIME ZONE 'UTC' FROM /* schema */oban_jobs AS job WHERE job.id = step.job_id
        AND (%(order_by)s::text = 'started_at' OR job.state::text = 'executing')
    )) END AS at
  ) AS began
  WHERE step.workflow_id = %(id)s
    AND (%(positions)s::integer[] IS NULL OR step.position = ANY(%(positions)s::integer[]))
    AND (%(settles)s::text[] IS NULL OR step.state = ANY(%(settles)s::text[]))
    AND (%(search)s::text IS NULL OR step.name ILIKE %(search)s::text OR step.function ILIKE %(search)s::text)
    AND (%(states)s::text[] IS NULL OR /* state */ = ANY(%(states)s::text[]))
  OFFSET 0
) AS found
WHERE %(after)s::integer IS NULL OR (found.place, found.position) > (%(place)s::double precision, %(after)s::integer)
ORDER BY found.place, found.position LIMIT %(limit)s
