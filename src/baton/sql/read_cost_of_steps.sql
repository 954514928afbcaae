-- read_cost_of_steps: what the calls of models of a workflow came to, by step, attempt and model, in the order that steps were added.
-- Params: id; name_prefix, a pattern of LIKE, or null; limit.
SELECT stat.step_name AS step, step.position, stat.attempt, stat.provider, stat.model,
  sum(stat.latency_ms) AS latency_ms,
  min(stat.inserted_at) AS first_at,
  array_agg(DISTINCT concat_ws(' ', stat.price_source, nullif(stat.price_version, ''))) FILTER (WHERE stat.price_source IS NOT NULL)
    AS prices,
/* totals */
FROM /* schema */workflow_step_stats AS stat
LEFT JOIN /* schema */workflow_nodes AS step ON step.id = stat.step_id AND step.workflow_id = stat.workflow_id
WHERE stat.workflow_id = %(id)s AND (%(name_prefix)s::text IS NULL OR stat.workflow_label LIKE %(name_prefix)s::text)
GROUP BY stat.step_id, stat.step_name, step.position, stat.attempt, stat.provider, stat.model
ORDER BY step.position, stat.step_id, stat.attempt, first_at, stat.model
LIMIT %(limit)s
