-- read_budget: a shared budget, or a run's own. Params: key or null; id of the run or null. Returns: at most one row.
SELECT
/* budget */
FROM /* schema */workflow_budgets AS budget WHERE budget.key = %(key)s::text OR budget.workflow_id = %(id)s::uuid
