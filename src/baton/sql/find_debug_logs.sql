-- find_debug_logs: captured calls of a run, in the order in which they were written. Params: id; attempt, or null; after, an id, 0 for
-- the start; limit; bytes, which the page is over by one call at most.
SELECT page.id, step.name, step.position, page.attempt, page.model, page.call_id, page.call_key, page.request, page.response, page.context,
       page.error, page.inserted_at, page.size
FROM (
  SELECT measured.* FROM (
    SELECT shown.*, sum(shown.size) OVER (ORDER BY shown.id) - shown.size AS before FROM (
/* captured */
      WHERE log.workflow_id = %(id)s AND log.id > %(after)s AND (%(attempt)s::integer IS NULL OR log.attempt = %(attempt)s::integer)
      ORDER BY log.id LIMIT %(limit)s::integer
    ) AS shown
  ) AS measured
  WHERE measured.before < %(bytes)s::integer
) AS page
JOIN /* schema */workflow_nodes AS step ON step.id = page.step_id
ORDER BY page.id
