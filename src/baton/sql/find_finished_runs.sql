-- find_finished_runs: workflows that finished after a moment, the earliest first; of those that finished in that moment itself, those
-- after an id, if one is given. Params: since; after_id, null for none; limit. Returns: id, generation and finished_at of each.
SELECT workflow.id, workflow.generation, workflow.finished_at
FROM /* schema */workflows AS workflow
WHERE workflow.finished_at >= %(since)s
  AND (workflow.finished_at > %(since)s OR workflow.id > %(after_id)s::uuid)
ORDER BY workflow.finished_at, workflow.id LIMIT %(limit)s
