-- Broken: believes every outcome, whoever holds the job by now.
CREATE OR REPLACE FUNCTION /* schema */baton_ack(
  p_outcomes jsonb, p_results text[],
  p_queue text, p_demand integer, p_node text, p_producer uuid, p_local uuid[], p_origin text,
  OUT acked bigint[], OUT queues text[], OUT owed boolean, OUT claimed json
) LANGUAGE plpgsql SECURITY DEFINER /* pinned */ AS $$
DECLARE
  steps bigint[];
  states text[];
  results text[];
  reasons text[];
BEGIN
  acked := '{}';
  queues := '{}';
  owed := false;
  IF p_results <> '{}' THEN
    PERFORM set_config('baton.engine', 'on', true);

    SELECT coalesce(array_agg(believed.id), '{}') INTO acked FROM (
      SELECT job.id FROM jsonb_to_recordset(p_outcomes) AS attempt (id bigint)
      JOIN /* schema */oban_jobs AS job ON job.id = attempt.id ORDER BY job.id FOR UPDATE OF job
    ) AS believed;

    SELECT array_agg(step.id), array_agg(outcome.state), array_agg(outcome.result), array_agg(outcome.reason)
    INTO steps, states, results, reasons
    FROM ROWS FROM (jsonb_to_recordset(p_outcomes) AS (id bigint, state text, reason text), unnest(p_results))
           AS outcome (id, state, reason, result)
    JOIN /* schema */workflow_nodes AS step ON step.job_id = outcome.id
    WHERE outcome.state IN ('completed', 'cancelled', 'discarded');
    IF steps IS NOT NULL THEN
      queues := /* schema */baton_settle(steps, states, results, reasons);
      owed := EXISTS (SELECT FROM /* schema */workflow_nodes AS step WHERE step.owed);
    END IF;

    UPDATE /* schema */oban_jobs AS job
    SET state = outcome.state::/* schema */oban_job_state,
        attempt = greatest(0, job.attempt + coalesce(outcome.attempt_change, 0)),
        scheduled_at = CASE WHEN outcome.delay IS NULL THEN job.scheduled_at
                            ELSE timezone('UTC', now()) + make_interval(secs => outcome.delay) END,
        completed_at = CASE WHEN outcome.state = 'completed' THEN timezone('UTC', now()) ELSE job.completed_at END,
        cancelled_at = CASE WHEN outcome.state = 'cancelled' THEN timezone('UTC', now()) ELSE job.cancelled_at END,
        discarded_at = CASE WHEN outcome.state = 'discarded' THEN timezone('UTC', now()) ELSE job.discarded_at END
    FROM jsonb_to_recordset(p_outcomes) AS outcome (id bigint, state text, attempt_change integer, delay double precision)
    WHERE job.id = outcome.id;

    PERFORM set_config('baton.engine', 'off', true);
  END IF;
  IF p_demand > 0 THEN
    claimed := /* schema */baton_claim(p_queue, p_demand, p_node, p_producer);
  END IF;
END
$$;
