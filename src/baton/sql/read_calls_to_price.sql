-- read_calls_to_price: calls of models whose cost may be another by the prices of today, the oldest first. What a step said itself that a
-- call cost stays. Params: from and to, or null; only_unpriced; after_at and after_id, of the last call of the batch before, or null;
-- limit.
SELECT stat.id, stat.inserted_at, stat.provider, stat.model, stat.service_tier, stat.input_tokens, stat.output_tokens,
  stat.cache_read_tokens, stat.cache_write_tokens, stat.reasoning_tokens, coalesce(stat.units, '{}') AS units,
  stat.cost_usd, stat.price_source, stat.price_version
FROM /* schema */workflow_step_stats AS stat
WHERE (%(from)s::timestamptz IS NULL OR stat.inserted_at >= %(from)s::timestamptz)
  AND (%(to)s::timestamptz IS NULL OR stat.inserted_at < %(to)s::timestamptz)
  AND CASE WHEN %(only_unpriced)s THEN stat.cost_usd IS NULL ELSE stat.price_source IS DISTINCT FROM 'given' END
  AND (%(after_at)s::timestamptz IS NULL OR (stat.inserted_at, stat.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid))
ORDER BY stat.inserted_at, stat.id
LIMIT %(limit)s
