-- find_debug_logs_of_step: captured calls of a step, in the order in which they were written. Params as in find_debug_logs; name, or
-- position and null. No row where there is no such step, one without a call where nothing was captured.
SELECT page.id, step.name, step.position, page.attempt, page.model, page.call_id, page.call_key, page.request, page.response, page.context,
       page.error, page.inserted_at, page.size
FROM /* schema */workflow_nodes AS step
LEFT JOIN LATERAL (
  SELECT measured.* FROM (
    SELECT shown.*, sum(shown.size) OVER (ORDER BY shown.id) - shown.size AS before FROM (
/* captured */
      WHERE log.step_id = step.id AND log.id > %(after)s AND (%(attempt)s::integer IS NULL OR log.attempt = %(attempt)s::integer)
      ORDER BY log.id LIMIT %(limit)s::integer
    ) AS shown
  ) AS measured
  WHERE measured.before < %(bytes)s::integer
) AS page ON true
WHERE step.workflow_id = %(id)s
  AND CASE WHEN %(name)s::text IS NULL THEN step.position = %(position)s::integer ELSE step.name = %(name)s::text END
ORDER BY page.id
