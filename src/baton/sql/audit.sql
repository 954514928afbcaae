-- audit: what must never be found, recomputed from the edges. Returns: invariant, workflow_id, step, detail. Empty when all is well.
WITH waiting AS (
  SELECT step.id, count(dependency.id) FILTER (WHERE dependency.settled_at IS NULL) AS unsettled
  FROM /* schema */workflow_nodes AS step
  LEFT JOIN /* schema */workflow_edges AS edge ON edge.dependent_id = step.id
  LEFT JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
  WHERE step.settled_at IS NULL GROUP BY step.id
), totals AS (
  SELECT workflow_id, count(*) AS steps, count(*) FILTER (WHERE settled_at IS NULL) AS unsettled,
         count(*) FILTER (WHERE state IN ('cancelled', 'discarded')) AS failed
  FROM /* schema */workflow_nodes GROUP BY workflow_id
), dependencies AS (
  -- Each edge with what it came to: whether the dependent may run after it, null while the dependency has not settled.
  SELECT edge.dependent_id, dependency.name, dependency.state, CASE
    WHEN dependency.state IN ('held', 'released') THEN NULL
    WHEN step.runs_on <> 'success' OR dependency.state = 'completed' THEN true
    WHEN dependency.state = 'discarded' THEN step.ignore_discarded
    ELSE step.ignore_cancelled END AS accepted
  FROM /* schema */workflow_edges AS edge
  JOIN /* schema */workflow_nodes AS step ON step.id = edge.dependent_id
  JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
)
SELECT 'counters' AS invariant, step.workflow_id, step.name AS step,
       'waits on ' || step.waiting_on || ', its edges say ' || waiting.unsettled AS detail
FROM waiting JOIN /* schema */workflow_nodes AS step USING (id) WHERE step.waiting_on <> waiting.unsettled
UNION ALL
SELECT 'counters', workflow.id, NULL,
       'counts ' || workflow.unsettled || ' unsettled and ' || workflow.failed || ' failed of ' || workflow.steps || ', its steps say '
       || coalesce(totals.unsettled, 0) || ', ' || coalesce(totals.failed, 0) || ' and ' || coalesce(totals.steps, 0)
FROM /* schema */workflows AS workflow LEFT JOIN totals ON totals.workflow_id = workflow.id
WHERE (workflow.unsettled, workflow.failed, workflow.steps)
      <> (coalesce(totals.unsettled, 0), coalesce(totals.failed, 0), coalesce(totals.steps, 0))
UNION ALL
SELECT 'pairing', step.workflow_id, step.name, step.state || ' step, ' || coalesce(job.state::text, 'no') || ' job'
FROM /* schema */workflow_nodes AS step JOIN /* schema */workflows AS workflow ON workflow.id = step.workflow_id
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
WHERE NOT step.owed AND CASE step.state
  WHEN 'held' THEN job.state IS DISTINCT FROM 'suspended'
  WHEN 'released' THEN job.state IS NULL OR job.state IN ('completed', 'cancelled', 'discarded')
    OR CASE WHEN step.cancel_requested_at IS NOT NULL THEN job.state <> 'executing'
            WHEN workflow.paused_at IS NOT NULL THEN job.state IN ('available', 'scheduled', 'retryable')
            ELSE job.state = 'suspended' END
  ELSE step.doomed AND job.state NOT IN ('completed', 'cancelled', 'discarded') END
UNION ALL
SELECT 'cancel', workflow.id, step.name, 'is ' || step.state || ' and was not asked to end, though its run was cancelled'
FROM /* schema */workflows AS workflow JOIN /* schema */workflow_nodes AS step ON step.workflow_id = workflow.id
WHERE workflow.cancel_requested_at IS NOT NULL AND step.state IN ('held', 'released') AND step.runs_on <> 'always'
  AND step.cancel_requested_at IS NULL
UNION ALL
SELECT 'gate', step.workflow_id, step.name, 'is ' || step.state || ' though ' || dependency.name || ' was ' || dependency.state
FROM dependencies AS dependency JOIN /* schema */workflow_nodes AS step ON step.id = dependency.dependent_id
WHERE CASE WHEN step.state = 'held' THEN NOT dependency.accepted
           WHEN step.state IN ('released', 'completed', 'discarded') THEN dependency.accepted IS NOT TRUE END
UNION ALL
SELECT 'doom', step.workflow_id, step.name, 'is doomed, and no dependency of it warrants that'
FROM /* schema */workflow_nodes AS step WHERE step.doomed AND NOT EXISTS (
  SELECT FROM dependencies AS cause WHERE cause.dependent_id = step.id AND NOT cause.accepted)
  AND (step.runs_on <> 'failure' OR EXISTS (
    SELECT FROM dependencies AS cause WHERE cause.dependent_id = step.id AND cause.state NOT IN ('completed', 'skipped')))
UNION ALL
SELECT 'finish', workflow.id, NULL, 'has ' || count(completion.workflow_id) || ' completion rows for generation ' || workflow.generation
FROM /* schema */workflows AS workflow
LEFT JOIN /* schema */workflow_completions AS completion
  ON completion.workflow_id = workflow.id AND completion.generation = workflow.generation
GROUP BY workflow.id
HAVING count(completion.workflow_id) <> CASE WHEN workflow.finished_at IS NULL THEN 0 ELSE 1 END
UNION ALL
SELECT 'generations', workflow.id, NULL, 'is in generation ' || workflow.generation || ' and has ended ' || count(completion.workflow_id) || ' before'
FROM /* schema */workflows AS workflow
LEFT JOIN /* schema */workflow_completions AS completion
  ON completion.workflow_id = workflow.id AND completion.generation < workflow.generation
GROUP BY workflow.id HAVING count(completion.workflow_id) <> workflow.generation - 1
UNION ALL
SELECT 'budgets', budget.workflow_id, NULL,
       'budget ' || coalesce(budget.key, budget.id::text) || ' has reserved ' || budget.reserved_usd || ' USD, ' || budget.reserved_tokens
       || ' tokens and ' || budget.reserved_calls || ' calls, its reservations say ' || coalesce(sum(reservation.usd), 0) || ', '
       || coalesce(sum(reservation.tokens), 0) || ' and ' || coalesce(sum(reservation.calls), 0)
FROM /* schema */workflow_budgets AS budget
LEFT JOIN /* schema */workflow_reservations AS reservation ON reservation.budget_id = budget.id AND reservation.lost_at IS NULL
GROUP BY budget.id
HAVING (budget.reserved_usd, budget.reserved_tokens, budget.reserved_calls)
       <> (coalesce(sum(reservation.usd), 0), coalesce(sum(reservation.tokens), 0), coalesce(sum(reservation.calls), 0))
UNION ALL
SELECT 'budgets', workflow.id, NULL, 'was paused by a budget and is not paused'
FROM /* schema */workflows AS workflow WHERE workflow.paused_for IS NOT NULL AND workflow.paused_at IS NULL
UNION ALL
SELECT 'repairs', step.workflow_id, step.name, 'could not be settled: ' || repair.error
FROM /* schema */workflow_repairs AS repair LEFT JOIN /* schema */workflow_nodes AS step ON step.id = repair.step_id
