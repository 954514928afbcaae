-- read_budgets_of_run: all budgets that hold for a run, its own first, then the shared ones by key. Params: id.
SELECT
/* budget */
FROM /* schema */workflow_budget_runs AS drawn JOIN /* schema */workflow_budgets AS budget ON budget.id = drawn.budget_id
WHERE drawn.workflow_id = %(id)s ORDER BY budget.key NULLS FIRST
