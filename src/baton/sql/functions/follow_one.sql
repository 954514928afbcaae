-- follow_one: settle the steps of one workflow; what cannot be settled is written down for the sweep to repair.
CREATE OR REPLACE FUNCTION /* schema */baton_follow_one(p_steps bigint[], p_states text[], p_reason text)
RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN /* schema */baton_settle(
    p_steps, p_states, array_fill(NULL::text, ARRAY[cardinality(p_steps)]),
    array_fill(p_reason, ARRAY[cardinality(p_steps)]));
EXCEPTION WHEN OTHERS THEN
  IF left(SQLSTATE, 2) IN ('40', '53', '55', '57') THEN
    RAISE;
  END IF;
  INSERT INTO /* schema */workflow_repairs (step_id, state, sqlstate, error)
  SELECT given.id, given.state, SQLSTATE, SQLERRM FROM unnest(p_steps, p_states) AS given (id, state)
  ON CONFLICT (step_id) DO UPDATE SET state = excluded.state, sqlstate = excluded.sqlstate, error = excluded.error;
  RETURN '{}';
END
$$;
