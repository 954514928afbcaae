-- totals: what the rows of workflow_step_stats that are called stat come to. What is unknown is left out of a sum, and no sum of nothing
-- known is 0; of no rows it is.
  count(*) AS calls,
  CASE WHEN count(*) = 0 THEN 0 ELSE sum(stat.input_tokens) END AS input_tokens,
  CASE WHEN count(*) = 0 THEN 0 ELSE sum(stat.output_tokens) END AS output_tokens,
  CASE WHEN count(*) = 0 THEN 0 ELSE sum(stat.cache_read_tokens) END AS cache_read_tokens,
  CASE WHEN count(*) = 0 THEN 0 ELSE sum(stat.cache_write_tokens) END AS cache_write_tokens,
  CASE WHEN count(*) = 0 THEN 0 ELSE sum(stat.reasoning_tokens) END AS reasoning_tokens,
  CASE WHEN count(*) = 0 THEN 0 ELSE sum(stat.cost_usd) END AS cost_usd,
  count(*) - count(stat.cost_usd) AS unpriced
