-- read_cost_by_step: what calls of models came to, by the name of their run and of their step, the dearest first. Params: those of spent; limit.
SELECT stat.workflow_label AS label, stat.step_name AS step,
/* totals */
FROM /* schema */workflow_step_stats AS stat
WHERE
/* spent */
GROUP BY stat.workflow_label, stat.step_name
ORDER BY cost_usd DESC NULLS LAST, calls DESC, label, step
LIMIT %(limit)s
