-- list_calls: the calls of models of a workflow, or of one of its steps, the oldest first (ids are ordered by time). Params: id;
-- name_prefix, a pattern of LIKE, or null; step, a name, or null; after, the id of a call, or null; limit.
SELECT stat.id AS call_id, stat.step_name AS step, stat.attempt, stat.call_key AS key, stat.provider, stat.model, stat.service_tier,
  stat.input_tokens, stat.output_tokens, stat.cache_read_tokens, stat.cache_write_tokens, stat.reasoning_tokens,
  coalesce(stat.units, '{}') AS units, stat.latency_ms, stat.cost_usd, stat.price_source, stat.price_version, stat.inserted_at
FROM /* schema */workflow_step_stats AS stat
WHERE stat.workflow_id = %(id)s
  AND (%(name_prefix)s::text IS NULL OR stat.workflow_label LIKE %(name_prefix)s::text)
  AND (%(step)s::text IS NULL OR stat.step_name = %(step)s::text)
  AND (%(after)s::uuid IS NULL OR stat.id > %(after)s::uuid)
ORDER BY stat.id
LIMIT %(limit)s
