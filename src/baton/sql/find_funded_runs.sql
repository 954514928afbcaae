-- find_funded_runs: runs that a budget paused and that was raised since, or deleted. Params: limit. Returns: id, the first paused first.
SELECT workflow.id FROM /* schema */workflows AS workflow LEFT JOIN /* schema */workflow_budgets AS budget ON budget.id = workflow.paused_for
WHERE workflow.paused_for IS NOT NULL AND (budget.id IS NULL OR budget.raised_at >= workflow.paused_at)
ORDER BY workflow.paused_at LIMIT %(limit)s
