-- read_cost_of_models: what the calls of models of a workflow came to, by model, the dearest first. Params: id; name_prefix, a pattern of
-- LIKE, or null; limit.
SELECT stat.provider, stat.model,
/* totals */
FROM /* schema */workflow_step_stats AS stat
WHERE stat.workflow_id = %(id)s AND (%(name_prefix)s::text IS NULL OR stat.workflow_label LIKE %(name_prefix)s::text)
GROUP BY stat.provider, stat.model
ORDER BY cost_usd DESC NULLS LAST, calls DESC, stat.model, stat.provider
LIMIT %(limit)s
