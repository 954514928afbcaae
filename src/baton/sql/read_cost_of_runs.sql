-- read_cost_of_runs: what the calls of models of each of some workflows came to. Params: ids; name_prefix, a pattern of LIKE, or null.
-- Returns one row for each that is there, or that calls are recorded of: these are kept longer.
SELECT wanted.id AS workflow_id, spent.*
FROM unnest(%(ids)s::uuid[]) AS wanted (id)
CROSS JOIN LATERAL (
  SELECT
/* totals */
  FROM /* schema */workflow_step_stats AS stat
  WHERE stat.workflow_id = wanted.id
    AND (%(name_prefix)s::text IS NULL OR stat.workflow_label LIKE %(name_prefix)s::text)
) AS spent
WHERE spent.calls > 0 OR EXISTS (
  SELECT FROM /* schema */workflows AS workflow
  WHERE workflow.id = wanted.id AND (%(name_prefix)s::text IS NULL OR workflow.name LIKE %(name_prefix)s::text)
)
