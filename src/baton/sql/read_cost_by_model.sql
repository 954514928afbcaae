-- read_cost_by_model: what calls of models came to, by model, the dearest first. Params: those of spent; limit.
SELECT stat.provider, stat.model,
/* totals */
FROM /* schema */workflow_step_stats AS stat
WHERE
/* spent */
GROUP BY stat.provider, stat.model
ORDER BY cost_usd DESC NULLS LAST, calls DESC, stat.model, stat.provider
LIMIT %(limit)s
