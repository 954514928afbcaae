-- charge: settle what was reserved with what was used, and add what nobody had asked leave for.
-- p_calls: JSON array of {workflow_id, reservation, cost_usd, input_tokens, output_tokens}; the reservation is null where there is none,
-- the others where they are not known: then what was reserved is charged. The first call of a reservation settles it. Whoever calls
-- this sees to it that each call comes once. A call counts as 10^15 tokens at most, so that what a provider says never leads out of a
-- bigint, which would refuse the call and all that follow.
CREATE OR REPLACE FUNCTION /* schema */baton_charge(p_calls jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  budgets bigint[];
BEGIN
  budgets := ARRAY(
    SELECT budget.id FROM /* schema */workflow_budgets AS budget
    WHERE budget.id IN (
      SELECT drawn.budget_id FROM jsonb_to_recordset(p_calls) AS given (workflow_id uuid)
      JOIN /* schema */workflow_budget_runs AS drawn ON drawn.workflow_id = given.workflow_id)
    ORDER BY budget.id FOR NO KEY UPDATE);
  IF budgets = '{}' THEN
    RETURN;
  END IF;
  WITH used AS (
    SELECT given.workflow_id AS workflow, given.cost_usd AS cost,
           CASE WHEN given.input_tokens IS NOT NULL OR given.output_tokens IS NOT NULL
                THEN least(coalesce(given.input_tokens, 0)::numeric + coalesce(given.output_tokens, 0), 1e15) END AS tokens,
           CASE WHEN row_number() OVER (PARTITION BY given.reservation ORDER BY given.place) = 1 THEN given.reservation END AS reservation
    FROM ROWS FROM (jsonb_to_recordset(p_calls) AS (
      workflow_id uuid, reservation uuid, cost_usd numeric, input_tokens bigint, output_tokens bigint)
    ) WITH ORDINALITY AS given (workflow_id, reservation, cost_usd, input_tokens, output_tokens, place)
  ), settled AS (
    SELECT drawn.budget_id,
           coalesce(used.cost, reservation.usd, 0) - CASE WHEN reservation.lost_at IS NOT NULL THEN reservation.usd ELSE 0 END AS usd,
           coalesce(used.tokens, reservation.tokens, 0)
             - CASE WHEN reservation.lost_at IS NOT NULL THEN reservation.tokens ELSE 0 END AS tokens,
           1 - CASE WHEN reservation.lost_at IS NOT NULL THEN reservation.calls ELSE 0 END AS calls,
           CASE WHEN used.cost IS NULL THEN 1 ELSE 0 END
             - CASE WHEN reservation.lost_at IS NOT NULL THEN reservation.calls ELSE 0 END AS unpriced,
           CASE WHEN reservation.lost_at IS NULL THEN reservation.usd END AS reserved_usd,
           CASE WHEN reservation.lost_at IS NULL THEN reservation.tokens END AS reserved_tokens,
           CASE WHEN reservation.lost_at IS NULL THEN reservation.calls END AS reserved_calls
    FROM used JOIN /* schema */workflow_budget_runs AS drawn ON drawn.workflow_id = used.workflow
    LEFT JOIN /* schema */workflow_reservations AS reservation
      ON reservation.id = used.reservation AND reservation.budget_id = drawn.budget_id
  ), summed AS (
    SELECT settled.budget_id, sum(settled.usd) AS usd, sum(settled.tokens)::bigint AS tokens, sum(settled.calls)::bigint AS calls,
           sum(settled.unpriced)::bigint AS unpriced, coalesce(sum(settled.reserved_usd), 0) AS reserved_usd,
           coalesce(sum(settled.reserved_tokens), 0)::bigint AS reserved_tokens,
           coalesce(sum(settled.reserved_calls), 0)::bigint AS reserved_calls
    FROM settled GROUP BY settled.budget_id
  )
  UPDATE /* schema */workflow_budgets AS budget
  SET spent_usd = budget.spent_usd + summed.usd, spent_tokens = budget.spent_tokens + summed.tokens,
      spent_calls = budget.spent_calls + summed.calls, unpriced_calls = budget.unpriced_calls + summed.unpriced,
      reserved_usd = budget.reserved_usd - summed.reserved_usd, reserved_tokens = budget.reserved_tokens - summed.reserved_tokens,
      reserved_calls = budget.reserved_calls - summed.reserved_calls,
      -- What was charged for a lost call and is given back makes room, as adding does.
      raised_at = CASE WHEN least(summed.usd, summed.tokens, summed.calls) < 0 THEN clock_timestamp() ELSE budget.raised_at END
  FROM summed WHERE budget.id = summed.budget_id AND budget.id = ANY(budgets);
  DELETE FROM /* schema */workflow_reservations AS reservation
  WHERE reservation.budget_id = ANY(budgets)
    AND reservation.id IN (SELECT given.reservation FROM jsonb_to_recordset(p_calls) AS given (reservation uuid));
END
$$;
