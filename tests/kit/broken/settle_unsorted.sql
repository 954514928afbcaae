-- Broken: locks the workflows in the order in which the caller named the steps.
CREATE OR REPLACE FUNCTION /* schema */baton_settle(
  p_ids bigint[], p_states text[], p_results text[], p_errors text[]
) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  one bigint;
  settled bigint[];
  queues text[];
BEGIN
  FOREACH one IN ARRAY p_ids LOOP
    PERFORM 1 FROM /* schema */workflows AS workflow
    WHERE workflow.id = (SELECT step.workflow_id FROM /* schema */workflow_nodes AS step WHERE step.id = one)
    FOR NO KEY UPDATE;
  END LOOP;

  WITH done AS (
    UPDATE /* schema */workflow_nodes AS step
    SET state = outcome.state, waiting_on = 0, error = outcome.error, settled_at = clock_timestamp(),
        result = CASE WHEN outcome.state = 'completed'
                      THEN jsonb_build_object('value', coalesce(outcome.result::jsonb, 'null')) END
    FROM unnest(p_ids, p_states, p_results, p_errors) AS outcome (id, state, result, error)
    WHERE step.id = outcome.id AND step.state IN ('held', 'released')
    RETURNING step.id, step.state
  )
  SELECT array_agg(id) || /* schema */baton_doom(array_agg(id) FILTER (WHERE state <> 'completed'))
  INTO settled FROM done;

  queues := /* schema */baton_release(settled);
  PERFORM /* schema */baton_finish(settled);
  RETURN queues;
END
$$;
