-- read_cost_by_label: what calls of models came to, by the name of their run, the dearest first. Params: those of spent; limit.
SELECT stat.workflow_label AS label,
/* totals */
FROM /* schema */workflow_step_stats AS stat
WHERE
/* spent */
GROUP BY stat.workflow_label
ORDER BY cost_usd DESC NULLS LAST, calls DESC, label
LIMIT %(limit)s
