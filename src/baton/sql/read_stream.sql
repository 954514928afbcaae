-- read_stream: a page of what a step has streamed, and whether more may come. Params: id; name, or position and null; attempt, null
-- for the newest that has streamed; after, the place that the page begins behind, -1 for the start; on, whether to go on with later
-- attempts, from their start; limit; bytes, which the page is over by one chunk at most.
-- No row where there is no such step, one without a chunk where there is nothing to read.
SELECT
  step.id AS step_id,
  -- A page without a chunk that says so is the last: what an attempt streamed was committed before its outcome.
  step.state NOT IN ('held', 'released') OR NOT %(on)s::boolean AND coalesce(job.attempt > coalesce(%(attempt)s::integer, stream.newest), job.id IS NULL)
    AS over,
  coalesce(%(attempt)s::integer, stream.newest) AS begins_in,
  page.attempt,
  page.position,
  page.bytes,
  page.chunk::text AS chunk
FROM /* schema */workflow_nodes AS step
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
LEFT JOIN LATERAL (
  SELECT written.attempt AS newest FROM /* schema */workflow_streams AS written
  WHERE written.step_id = step.id ORDER BY written.attempt DESC LIMIT 1
) AS stream ON true
LEFT JOIN LATERAL (
  SELECT measured.* FROM (
    SELECT next.*, sum(next.bytes) OVER (ORDER BY next.attempt, next.position) - next.bytes AS before FROM (
      SELECT written.attempt, written.position, written.bytes, written.chunk FROM /* schema */workflow_streams AS written
      WHERE written.step_id = step.id
        AND (written.attempt, written.position) > (coalesce(%(attempt)s::integer, stream.newest), %(after)s::integer)
        AND (%(on)s::boolean OR written.attempt = coalesce(%(attempt)s::integer, stream.newest))
      ORDER BY written.attempt, written.position LIMIT %(limit)s::integer
    ) AS next
  ) AS measured
  WHERE measured.before < %(bytes)s::integer
) AS page ON true
WHERE step.workflow_id = %(id)s
  AND CASE WHEN %(name)s::text IS NULL THEN step.position = %(position)s::integer ELSE step.name = %(name)s::text END
ORDER BY page.attempt, page.position
