-- ack: write the outcomes of a batch of attempts, settle their steps, and claim what the queue may run next, in one commit.
-- An outcome counts only for the attempt that still holds its job (state and attempted_at), so a late one changes nothing.
-- p_outcomes: JSON array of {id, attempted_at, state, attempt_change, delay, error, meta, reason}; empty, this only claims.
-- `state::text` here and elsewhere keeps the planner from looking a job up by its state, of which there may be millions, when
-- its id is known. p_results: JSON text of each one's result, in the same order. p_demand 0 claims nothing.
-- Returns ids acked; queues to wake here; whether a job is owed; claimed jobs as `claim` gives them. See note for what
-- else it tells.
CREATE OR REPLACE FUNCTION /* schema */baton_ack(
  p_outcomes jsonb, p_results text[],
  p_queue text, p_demand integer, p_node text, p_producer uuid, p_local uuid[], p_origin text,
  OUT acked bigint[], OUT queues text[], OUT owed boolean, OUT claimed text[]
) LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  steps bigint[];
  states text[];
  results text[];
  reasons text[];
  rerun bigint[];
  stopped bigint[];
BEGIN
  acked := '{}';
  queues := '{}';
  owed := false;

  IF p_results <> '{}' THEN
    -- Here everything propagates: the caller retries it, or finds the one outcome that cannot be written.
    PERFORM set_config('baton.engine', 'on', true);

    -- LIMIT takes nothing away. It makes the planner expect few outcomes, so that it looks up each one's job instead of
    -- reading all jobs, which on small tables seems cheaper than the hundred look-ups it expects otherwise.
    SELECT coalesce(array_agg(fenced.id), '{}') INTO acked FROM (
      SELECT job.id
      FROM (SELECT id, attempted_at FROM jsonb_to_recordset(p_outcomes) AS given (id bigint, attempted_at timestamp)
            LIMIT cardinality(p_results)) AS attempt
      JOIN /* schema */oban_jobs AS job ON job.id = attempt.id
      WHERE job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
      ORDER BY job.id FOR UPDATE OF job
    ) AS fenced;

    -- A statement of its own: the one above may have waited for a cancel, and still sees the steps as they were before it.
    SELECT array_agg(ended.step_id) FILTER (WHERE ended.live), array_agg(ended.state) FILTER (WHERE ended.live),
           array_agg(ended.result) FILTER (WHERE ended.live), array_agg(ended.reason) FILTER (WHERE ended.live),
           array_agg(ended.step_id) FILTER (WHERE NOT ended.live), array_agg(ended.job_id) FILTER (WHERE ended.stopped)
    INTO steps, states, results, reasons, rerun, stopped
    FROM (
      SELECT job.id AS job_id, step.id AS step_id, step.state IN ('held', 'released') AS live, asked.stopped, outcome.result,
             CASE WHEN asked.stopped THEN 'cancelled' ELSE outcome.state END AS state,
             CASE WHEN asked.stopped THEN coalesce(step.cancel_reason, outcome.reason) ELSE outcome.reason END AS reason
      FROM ROWS FROM (jsonb_to_recordset(p_outcomes) AS (id bigint, attempted_at timestamp, state text, reason text),
                      unnest(p_results)) AS outcome (id, attempted_at, state, reason, result)
      -- OFFSET keeps this a look-up for each of them; see release.
      CROSS JOIN LATERAL (
        SELECT held.id, held.meta, held.attempted_at FROM /* schema */oban_jobs AS held
        WHERE held.id = outcome.id AND held.state::text = 'executing' AND held.attempted_at = outcome.attempted_at OFFSET 0
      ) AS job
      LEFT JOIN /* schema */workflow_nodes AS step ON step.job_id = outcome.id
      -- A step has its cancel in its own row. An ordinary job has Oban's mark, which counts for the attempt it was meant for.
      CROSS JOIN LATERAL (SELECT coalesce(step.state = 'released' AND step.cancel_requested_at IS NOT NULL, false) OR coalesce(
        (job.meta ->> 'cancel_attempted_at') > (to_jsonb(job.attempted_at) #>> '{}') COLLATE "C", false) AS stopped) AS asked
    ) AS ended
    WHERE ended.state IN ('completed', 'cancelled', 'discarded') AND (ended.step_id IS NOT NULL OR ended.stopped);

    -- The steps first, then their jobs: the trigger on the job table then finds nothing left to do.
    IF steps IS NOT NULL THEN
      queues := /* schema */baton_settle(steps, states, results, reasons);
      owed := EXISTS (
        SELECT FROM /* schema */workflow_nodes AS owing WHERE owing.owed AND owing.workflow_id IN (
          SELECT step.workflow_id FROM /* schema */workflow_nodes AS step WHERE step.id = ANY(steps)));
    END IF;
    IF stopped IS NOT NULL THEN
      PERFORM /* schema */baton_note(json_build_object('stopped', json_object_agg(step.job_id, step.cancel_reason))::text)
      FROM /* schema */workflow_nodes AS step WHERE step.job_id = ANY(stopped) HAVING count(*) > 0;
    END IF;
    IF rerun IS NOT NULL THEN
      UPDATE /* schema */workflow_nodes AS step SET reruns = step.reruns + 1 WHERE step.id = ANY(rerun);
    END IF;

    UPDATE /* schema */oban_jobs AS job
    SET state = outcome.state::/* schema */oban_job_state,
        attempt = greatest(0, job.attempt + coalesce(outcome.attempt_change, 0)),
        scheduled_at = CASE WHEN outcome.delay IS NULL THEN job.scheduled_at
                            ELSE timezone('UTC', now()) + make_interval(secs => outcome.delay) END,
        completed_at = CASE WHEN outcome.state = 'completed' THEN timezone('UTC', now()) ELSE job.completed_at END,
        cancelled_at = CASE WHEN outcome.state = 'cancelled' THEN timezone('UTC', now()) ELSE job.cancelled_at END,
        discarded_at = CASE WHEN outcome.state = 'discarded' THEN timezone('UTC', now()) ELSE job.discarded_at END,
        errors = CASE WHEN outcome.error IS NULL THEN job.errors ELSE job.errors || outcome.error END,
        meta = CASE WHEN outcome.meta IS NULL THEN job.meta ELSE job.meta || outcome.meta END
    FROM (SELECT given.id, given.attempted_at, given.attempt_change, given.delay, given.error, given.meta,
                 CASE WHEN given.id = ANY(stopped) THEN 'cancelled' ELSE given.state END AS state
          FROM jsonb_to_recordset(p_outcomes) AS given (
            id bigint, attempted_at timestamp, state text, attempt_change integer, delay double precision, error jsonb,
            meta jsonb)
          LIMIT cardinality(p_results)) AS outcome
    WHERE job.id = outcome.id AND job.state::text = 'executing' AND job.attempted_at = outcome.attempted_at;

    PERFORM set_config('baton.engine', 'off', true);
  END IF;

  IF p_demand > 0 THEN
    claimed := /* schema */baton_claim(p_queue, p_demand, p_node, p_producer);
  END IF;
  PERFORM /* schema */baton_wake(queues, p_local, p_origin);
END
$$;
