-- release_reservation: give back what reservations hold that nothing was used of; also what was charged already, of those that were taken
-- for lost. One that is settled, or not there, is left alone.
CREATE OR REPLACE FUNCTION /* schema */baton_release_reservation(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql /* pinned */ SET lock_timeout = '1s' AS $$
BEGIN
  PERFORM 1 FROM /* schema */workflow_budgets AS budget
  WHERE budget.id IN (SELECT reservation.budget_id FROM /* schema */workflow_reservations AS reservation WHERE reservation.id = ANY(p_ids))
  ORDER BY budget.id FOR NO KEY UPDATE;
  WITH ended AS (
    DELETE FROM /* schema */workflow_reservations AS reservation WHERE reservation.id = ANY(p_ids)
    RETURNING reservation.budget_id, reservation.usd, reservation.tokens, reservation.calls,
              -- Out of what is reserved, or out of what is spent.
              CASE WHEN reservation.lost_at IS NULL THEN 1 ELSE 0 END AS held, CASE WHEN reservation.lost_at IS NULL THEN 0 ELSE 1 END AS charged
  ), summed AS (
    SELECT ended.budget_id, sum(ended.usd * ended.held) AS reserved_usd, sum(ended.tokens * ended.held)::bigint AS reserved_tokens,
           sum(ended.calls * ended.held)::bigint AS reserved_calls, sum(ended.usd * ended.charged) AS usd,
           sum(ended.tokens * ended.charged)::bigint AS tokens, sum(ended.calls * ended.charged)::bigint AS calls
    FROM ended GROUP BY ended.budget_id
  )
  UPDATE /* schema */workflow_budgets AS budget
  SET reserved_usd = budget.reserved_usd - summed.reserved_usd, reserved_tokens = budget.reserved_tokens - summed.reserved_tokens,
      reserved_calls = budget.reserved_calls - summed.reserved_calls, spent_usd = budget.spent_usd - summed.usd,
      spent_tokens = budget.spent_tokens - summed.tokens, spent_calls = budget.spent_calls - summed.calls,
      unpriced_calls = budget.unpriced_calls - summed.calls,
      -- What was charged for a lost call and is given back makes room, as adding does.
      raised_at = CASE WHEN summed.calls > 0 THEN clock_timestamp() ELSE budget.raised_at END
  FROM summed WHERE budget.id = summed.budget_id;
END
$$;
