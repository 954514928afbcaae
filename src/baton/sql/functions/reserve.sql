-- reserve: set aside of all the budgets that a step's run draws on what a call may come to, or of none. Once for each id.
-- p_usd null: nobody knows its price. p_id null: nothing is set aside; a step asks whether it may start.
-- Returns {status}: ok, with whether a budget in dollars let a call pass whose price is not known; late, if the attempt holds its job no
-- longer; unpriced, with the key of the budget that is strict; or what short_of says. Budgets are locked by id, after jobs and runs.
-- A budget that somebody holds for long is not waited for: lock_not_available.
CREATE OR REPLACE FUNCTION /* schema */baton_reserve(
  p_id uuid, p_job_id bigint, p_attempted_at timestamp, p_usd numeric, p_tokens bigint
) RETURNS jsonb LANGUAGE plpgsql /* pinned */ SET lock_timeout = '1s' AS $$
DECLARE
  step record;
  budgets bigint[];
  dollars text;
  unpriced text;
  obstacle jsonb;
BEGIN
  -- Not locked: an attempt that loses its job a moment later is one that lost it during its call.
  SELECT node.id, node.workflow_id INTO step
  FROM /* schema */oban_jobs AS job JOIN /* schema */workflow_nodes AS node ON node.job_id = job.id
  WHERE job.id = p_job_id AND job.state::text = 'executing' AND job.attempted_at = p_attempted_at;
  IF NOT FOUND THEN
    RETURN '{"status": "late"}';
  END IF;
  IF p_id IS NULL AND EXISTS (SELECT FROM /* schema */workflow_checkpoints AS checkpoint WHERE checkpoint.step_id = step.id) THEN
    -- It has paid for calls, which may be all that it needs. It asks before any other.
    RETURN '{"status": "ok", "blind": false}';
  END IF;
  budgets := ARRAY(
    SELECT budget.id FROM /* schema */workflow_budget_runs AS drawn JOIN /* schema */workflow_budgets AS budget ON budget.id = drawn.budget_id
    WHERE drawn.workflow_id = step.workflow_id ORDER BY budget.id FOR NO KEY UPDATE OF budget);
  IF EXISTS (SELECT FROM /* schema */workflow_reservations AS reservation WHERE reservation.id = p_id) THEN
    RETURN '{"status": "ok", "blind": false}';
  END IF;

  IF p_id IS NOT NULL AND p_usd IS NULL THEN
    SELECT budget.key, budget.unpriced INTO dollars, unpriced FROM /* schema */workflow_budgets AS budget
    WHERE budget.id = ANY(budgets) AND budget.limit_usd IS NOT NULL ORDER BY budget.unpriced = 'strict' DESC, budget.id LIMIT 1;
    IF unpriced = 'strict' THEN
      RETURN jsonb_build_object('status', 'unpriced', 'key', dollars);
    END IF;
  END IF;

  obstacle := /* schema */baton_short_of(budgets, p_usd, p_tokens, p_id IS NULL);
  IF obstacle ->> 'status' = 'waiting' THEN
    IF /* schema */baton_charge_lost(budgets) > 0 THEN
      obstacle := /* schema */baton_short_of(budgets, p_usd, p_tokens, p_id IS NULL);
    END IF;
  END IF;
  IF obstacle IS NOT NULL OR p_id IS NULL THEN
    RETURN coalesce(obstacle, '{"status": "ok", "blind": false}');
  END IF;

  INSERT INTO /* schema */workflow_reservations (id, budget_id, step_id, job_id, attempted_at, usd, tokens, calls)
  SELECT p_id, budget.id, step.id, p_job_id, p_attempted_at, coalesce(p_usd, 0), p_tokens, 1 FROM unnest(budgets) AS budget (id);
  UPDATE /* schema */workflow_budgets AS budget
  SET reserved_usd = budget.reserved_usd + coalesce(p_usd, 0), reserved_tokens = budget.reserved_tokens + p_tokens,
      reserved_calls = budget.reserved_calls + 1
  WHERE budget.id = ANY(budgets);
  RETURN jsonb_build_object('status', 'ok', 'blind', unpriced IS NOT NULL);
END
$$;
