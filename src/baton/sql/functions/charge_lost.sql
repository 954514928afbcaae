-- charge_lost: charge what attempts had reserved that hold their job no longer: they died, and nobody knows whether their calls were
-- paid for. Their rows stay, marked, so that an attempt which lives after all can still say what it was.
-- p_budgets: locked by the caller. Returns how many reservations there were.
CREATE OR REPLACE FUNCTION /* schema */baton_charge_lost(p_budgets bigint[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  lost bigint;
BEGIN
  WITH dead AS (
    UPDATE /* schema */workflow_reservations AS reservation SET lost_at = clock_timestamp()
    WHERE reservation.budget_id = ANY(p_budgets) AND reservation.lost_at IS NULL AND NOT EXISTS (
      SELECT FROM /* schema */oban_jobs AS job
      WHERE job.id = reservation.job_id AND job.state::text = 'executing' AND job.attempted_at = reservation.attempted_at)
    RETURNING reservation.budget_id, reservation.usd, reservation.tokens, reservation.calls
  ), summed AS (
    SELECT dead.budget_id, sum(dead.usd) AS usd, sum(dead.tokens)::bigint AS tokens, sum(dead.calls)::bigint AS calls
    FROM dead GROUP BY dead.budget_id
  ), moved AS (
    UPDATE /* schema */workflow_budgets AS budget
    SET reserved_usd = budget.reserved_usd - summed.usd, reserved_tokens = budget.reserved_tokens - summed.tokens,
        reserved_calls = budget.reserved_calls - summed.calls, spent_usd = budget.spent_usd + summed.usd,
        spent_tokens = budget.spent_tokens + summed.tokens, spent_calls = budget.spent_calls + summed.calls,
        unpriced_calls = budget.unpriced_calls + summed.calls
    FROM summed WHERE budget.id = summed.budget_id
  )
  SELECT count(*) INTO lost FROM dead;
  RETURN lost;
END
$$;
