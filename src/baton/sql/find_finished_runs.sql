-- find_finished_runs: workflows that finished after a moment, the earliest first. Params: since, limit. Returns: id, generation and
-- finished_at of each.
SELECT workflow.id, workflow.generation, workflow.finished_at
FROM /* schema */workflows AS workflow
WHERE workflow.finished_at > %(since)s ORDER BY workflow.finished_at LIMIT %(limit)s
