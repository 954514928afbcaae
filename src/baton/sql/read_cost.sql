-- read_cost: what all calls of models came to. Params: those of spent.
SELECT
/* totals */
FROM /* schema */workflow_step_stats AS stat
WHERE
/* spent */
