-- add_to_budget: raise a budget by so much, also below nothing; its limits stay as they were declared. It is found by its key, or by the
-- run whose own it is. Returns its id, null where there is none. Errors: BT005 for a limit that it does not have, its kind as the detail.
CREATE OR REPLACE FUNCTION /* schema */baton_add_to_budget(
  p_key text, p_workflow uuid, p_usd numeric, p_tokens bigint, p_calls bigint
) RETURNS bigint LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  budget record;
  missing text;
BEGIN
  SELECT held.id, held.limit_usd, held.limit_tokens, held.limit_calls INTO budget FROM /* schema */workflow_budgets AS held
  WHERE held.key = p_key OR held.workflow_id = p_workflow FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  missing := CASE WHEN p_usd <> 0 AND budget.limit_usd IS NULL THEN 'usd' WHEN p_tokens <> 0 AND budget.limit_tokens IS NULL THEN 'tokens'
                  WHEN p_calls <> 0 AND budget.limit_calls IS NULL THEN 'calls' END;
  IF missing IS NOT NULL THEN
    RAISE EXCEPTION 'the budget has no limit in %', missing USING ERRCODE = 'BT005', DETAIL = missing;
  END IF;
  UPDATE /* schema */workflow_budgets AS held
  SET added_usd = held.added_usd + p_usd, added_tokens = held.added_tokens + p_tokens, added_calls = held.added_calls + p_calls,
      raised_at = clock_timestamp()
  WHERE held.id = budget.id;
  RETURN budget.id;
END
$$;
