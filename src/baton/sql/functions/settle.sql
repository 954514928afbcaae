-- settle: steps reach completed, cancelled, discarded or skipped, once, and everything that follows from it happens here.
-- Every way for a step to end passes this function, in the transaction that ended it. A step that has settled already is
-- left alone, so a late or repeated call changes nothing. The caller has locked the job rows, ids ascending.
-- Arrays run in parallel, one element per step. A step completed without a result (NULL) was completed by somebody who knows
-- nothing of workflows: its result is null, marked as foreign. Returns the queues in which jobs became available, with repeats.
CREATE OR REPLACE FUNCTION /* schema */baton_settle(
  p_ids bigint[], p_states text[], p_results text[], p_errors text[]
) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  settled bigint[];
  unfortunate bigint[];
  level bigint[];
  queues text[] := '{}';
  went record;
BEGIN
  -- One lock order everywhere: two nodes settling into one fan-in queue up here, they do not deadlock.
  PERFORM 1 FROM /* schema */workflows AS workflow
  WHERE workflow.id IN (SELECT step.workflow_id FROM /* schema */workflow_nodes AS step WHERE step.id = ANY(p_ids))
  ORDER BY workflow.id FOR NO KEY UPDATE;

  WITH done AS (
    UPDATE /* schema */workflow_nodes AS step
    SET state = outcome.state,
        waiting_on = 0,
        result = CASE WHEN outcome.state <> 'completed' THEN NULL
                      WHEN outcome.result IS NULL THEN '{"value": null, "foreign": true}'
                      ELSE jsonb_build_object('value', outcome.result::jsonb) END,
        error = CASE WHEN outcome.state <> 'completed'
                     THEN coalesce(outcome.error, CASE outcome.state WHEN 'cancelled' THEN self.cancel_reason END,
                                   job.errors -> -1 ->> 'error', 'its job was ' || outcome.state) END,
        attempt = job.attempt,
        started_at = job.attempted_at AT TIME ZONE 'UTC',
        settled_at = clock_timestamp()
    FROM unnest(p_ids, p_states, p_results, p_errors) AS outcome (id, state, result, error)
    LEFT JOIN /* schema */workflow_nodes AS self ON self.id = outcome.id
    LEFT JOIN /* schema */oban_jobs AS job ON job.id = self.job_id
    WHERE step.id = outcome.id AND step.state IN ('held', 'released')
    RETURNING step.id, step.state
  )
  SELECT array_agg(id), array_agg(id) FILTER (WHERE state <> 'completed') INTO settled, unfortunate FROM done;

  IF settled IS NULL THEN
    RETURN '{}';
  END IF;
  level := settled;
  LOOP
    IF unfortunate IS NOT NULL THEN
      unfortunate := /* schema */baton_doom(unfortunate);
      settled := settled || unfortunate;
      level := level || unfortunate;
    END IF;
    SELECT * INTO went FROM /* schema */baton_release(level);
    queues := queues || went.queues;
    EXIT WHEN went.skipped = '{}';
    -- What was skipped has settled in turn.
    unfortunate := went.skipped;
    settled := settled || went.skipped;
    level := went.skipped;
  END LOOP;
  PERFORM /* schema */baton_finish(settled);
  RETURN queues;
END
$$;
