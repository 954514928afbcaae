-- baton_llm_calls: one row per call of a model, kept also when its run is pruned. Public: columns are only ever added, at the end. What
-- was asked and answered is not among them.
-- Whoever may read the view needs no rights on the tables. It leaves no row out, so it need not be a barrier.
CREATE OR REPLACE VIEW /* schema */baton_llm_calls AS
SELECT
  stat.id AS call_id,
  stat.inserted_at AS called_at,
  stat.workflow_id,
  stat.workflow_label AS workflow_name,
  stat.step_id,
  stat.step_name AS step,
  stat.attempt,
  stat.call_key,
  stat.provider,
  stat.model,
  stat.service_tier,
  stat.input_tokens,
  stat.output_tokens,
  stat.cache_read_tokens,
  stat.cache_write_tokens,
  stat.reasoning_tokens,
  stat.latency_ms / 1000 AS latency_seconds,
  stat.cost_usd,
  stat.price_source,
  stat.price_version,
  stat.units
FROM /* schema */workflow_step_stats AS stat
