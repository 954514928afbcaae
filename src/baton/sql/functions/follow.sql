-- follow: make steps follow what somebody did to their jobs: Oban's cancel, retry, rescue, delete, another node, a DBA.
-- p_ids: jobs whose rows this transaction has written and that no longer agree with their steps. Returns nothing and, for
-- plain statements, raises nothing that would make them fail on our account, except what a caller is expected to retry.
CREATE OR REPLACE FUNCTION /* schema */baton_follow(p_steps bigint[], p_states text[], p_reason text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  queues text[] := '{}';
  one record;
BEGIN
  BEGIN
    queues := /* schema */baton_settle(
      p_steps, p_states, array_fill(NULL::text, ARRAY[cardinality(p_steps)]),
      array_fill(p_reason, ARRAY[cardinality(p_steps)]));
  EXCEPTION WHEN OTHERS THEN
    -- 40 serialization and deadlock, 53 resources, 55 locks, 57 shutdown: nobody's fault, the caller must see them.
    IF current_setting('baton.engine', true) = 'on' OR left(SQLSTATE, 2) IN ('40', '53', '55', '57') THEN
      RAISE;
    END IF;
    FOR one IN
      SELECT array_agg(step.id ORDER BY step.id) AS ids, array_agg(given.state ORDER BY step.id) AS states
      FROM unnest(p_steps, p_states) AS given (id, state)
      JOIN /* schema */workflow_nodes AS step ON step.id = given.id
      GROUP BY step.workflow_id ORDER BY step.workflow_id
    LOOP
      queues := queues || /* schema */baton_follow_one(one.ids, one.states, p_reason);
    END LOOP;
  END;
  PERFORM /* schema */baton_wake(queues, '{}', NULL);
END
$$;
