-- read_orphans: rows that lost what they belong to. Returns: what, count (1,000 at most). Empty when all is well.
SELECT what, count FROM (
  SELECT 'unsettled steps without a job' AS what, (SELECT count(*) FROM (
    SELECT FROM /* schema */workflows AS workflow JOIN /* schema */workflow_nodes AS step ON step.workflow_id = workflow.id
    WHERE workflow.finished_at IS NULL AND step.state IN ('held', 'released')
      AND NOT EXISTS (SELECT FROM /* schema */oban_jobs AS job WHERE job.id = step.job_id) LIMIT 1000) AS lost) AS count
  UNION ALL
  SELECT 'steps without a run', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_nodes AS step
    WHERE NOT EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = step.workflow_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'dependencies without a step', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_edges AS edge
    WHERE NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step WHERE step.id = edge.dependency_id)
       OR NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step WHERE step.id = edge.dependent_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'completions without a run', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_completions AS completion
    WHERE NOT EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = completion.workflow_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'deliveries without a run', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_deliveries AS delivery
    WHERE NOT EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = delivery.workflow_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'stored values without a step', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_checkpoints AS checkpoint
    WHERE NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step WHERE step.id = checkpoint.step_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'debug logs without a run', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_debug_logs AS log
    WHERE NOT EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = log.workflow_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'budgets without a run', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_budgets AS budget WHERE budget.workflow_id IS NOT NULL
      AND NOT EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = budget.workflow_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'shares of a budget without the run or the budget', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_budget_runs AS drawn
    WHERE NOT EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = drawn.workflow_id)
       OR NOT EXISTS (SELECT FROM /* schema */workflow_budgets AS budget WHERE budget.id = drawn.budget_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'reservations without a step or a budget', (SELECT count(*) FROM (
    SELECT FROM /* schema */workflow_reservations AS reservation
    WHERE NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step WHERE step.id = reservation.step_id)
       OR NOT EXISTS (SELECT FROM /* schema */workflow_budgets AS budget WHERE budget.id = reservation.budget_id) LIMIT 1000) AS lost)
  UNION ALL
  SELECT 'reports without a step', (SELECT count(*) FROM (
    SELECT FROM (
      SELECT step_id FROM /* schema */workflow_progress UNION ALL SELECT step_id FROM /* schema */workflow_streams
    ) AS report
    WHERE NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step WHERE step.id = report.step_id) LIMIT 1000) AS lost)
) AS orphans
WHERE count > 0
