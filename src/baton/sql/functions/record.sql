-- record: write what calls of models used, and captured calls. Facts: they need no attempt that holds its job, nor a run that is
-- still there. Sent again, nothing is written twice, by the ids that whoever made the calls gave.
-- p_usage: JSON array of rows of workflow_step_stats, with `age`, seconds since the call; `budgeted`; and the `reservation` that was
-- made for it. p_logs: JSON array of rows of workflow_debug_logs, with their `age`.
-- Whoever follows the run is told. What budgeted calls used is charged once, in this commit; see charge.
CREATE OR REPLACE FUNCTION /* schema */baton_record(p_usage jsonb, p_logs jsonb) RETURNS void LANGUAGE plpgsql /* pinned */ SET lock_timeout = '1s' AS $$
DECLARE
  charges jsonb;
  steps bigint[];
BEGIN
  WITH written AS (
    INSERT INTO /* schema */workflow_step_stats (
      id, workflow_id, workflow_label, step_id, step_name, attempt, call_key, provider, model, service_tier, input_tokens,
      output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, units, latency_ms, cost_usd, price_source,
      price_version, inserted_at)
    SELECT given.id, given.workflow_id, given.workflow_label, given.step_id, given.step_name, given.attempt, given.call_key,
           given.provider, given.model, given.service_tier, given.input_tokens, given.output_tokens, given.cache_read_tokens,
           given.cache_write_tokens, given.reasoning_tokens, given.units, given.latency_ms, given.cost_usd, given.price_source,
           given.price_version, clock_timestamp() - make_interval(secs => coalesce(given.age, 0))
    FROM jsonb_to_recordset(p_usage) AS given (
      id uuid, workflow_id uuid, workflow_label text, step_id bigint, step_name text, attempt integer, call_key text,
      provider text, model text, service_tier text, input_tokens bigint, output_tokens bigint, cache_read_tokens bigint,
      cache_write_tokens bigint, reasoning_tokens bigint, units jsonb, latency_ms double precision, cost_usd numeric,
      price_source text, price_version text, age double precision)
    ORDER BY given.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, step_id
  )
  SELECT jsonb_agg(charge.given) FILTER (WHERE (charge.given -> 'budgeted')::boolean), coalesce(array_agg(DISTINCT written.step_id), '{}')
  INTO charges, steps
  FROM jsonb_array_elements(p_usage) AS charge (given) JOIN written ON written.id = (charge.given ->> 'id')::uuid;
  PERFORM /* schema */baton_announce(steps);
  IF charges IS NOT NULL THEN
    PERFORM /* schema */baton_charge(charges);
  END IF;

  IF p_logs <> '[]' THEN
    INSERT INTO /* schema */workflow_debug_logs (
      call_id, workflow_id, step_id, step_name, attempt, call_key, model, request, response, error, context, inserted_at)
    SELECT given.call_id, given.workflow_id, given.step_id, given.step_name, given.attempt, given.call_key, given.model,
           given.request, given.response, given.error, given.context,
           clock_timestamp() - make_interval(secs => coalesce(given.age, 0))
    FROM jsonb_to_recordset(p_logs) AS given (
      call_id uuid, workflow_id uuid, step_id bigint, step_name text, attempt integer, call_key text, model text, request jsonb,
      response jsonb, error text, context jsonb, age double precision)
    -- Of a run that was pruned meanwhile, nobody would delete them.
    WHERE EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = given.workflow_id)
    ORDER BY given.call_id
    ON CONFLICT (call_id) DO NOTHING;
  END IF;
END
$$;
