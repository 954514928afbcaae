-- budget: what is said of a row of workflow_budgets that is called budget. Runs that it has paused are counted up to 1,000.
  budget.key, budget.workflow_id, budget.on_exhausted, budget.unpriced, budget.unpriced_calls, budget.inserted_at, budget.raised_at,
  budget.limit_usd, budget.added_usd, budget.spent_usd, budget.reserved_usd,
  budget.limit_tokens, budget.added_tokens, budget.spent_tokens, budget.reserved_tokens,
  budget.limit_calls, budget.added_calls, budget.spent_calls, budget.reserved_calls,
  (SELECT count(*) FROM (SELECT FROM /* schema */workflows AS workflow WHERE workflow.paused_for = budget.id LIMIT 1000) AS paused
  ) AS paused_runs
