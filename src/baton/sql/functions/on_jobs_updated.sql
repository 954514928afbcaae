-- on_jobs_updated: after every UPDATE of oban_jobs, whoever made it, steps and jobs agree again.
-- It compares states instead of watching transitions: plain jobs have no step, and our own statements move the step first, so
-- both end after one index look-up per row. Recursion is bounded by the same comparison, never by depth: a cancel that comes
-- from a user's own trigger arrives here at depth 2 and counts like any other.
CREATE OR REPLACE FUNCTION /* schema */baton_on_jobs_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp /* pinned */ AS $$
DECLARE
  settled bigint[];
  states text[];
  put_back bigint[];
  dead bigint[];
BEGIN
  SELECT array_agg(step.id) FILTER (WHERE step.state IN ('held', 'released')),
         array_agg(job.state::text) FILTER (WHERE step.state IN ('held', 'released')),
         array_agg(job.id) FILTER (WHERE step.state = 'held' AND job.state NOT IN ('completed', 'cancelled', 'discarded')),
         array_agg(job.id) FILTER (WHERE step.doomed)
  INTO settled, states, put_back, dead
  FROM changed AS job JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id
  WHERE CASE WHEN job.state IN ('completed', 'cancelled', 'discarded') THEN step.state IN ('held', 'released')
             WHEN job.state = 'suspended' THEN false
             ELSE step.state = 'held' OR step.doomed END;

  IF settled IS NULL AND dead IS NULL THEN
    RETURN NULL;
  END IF;

  -- A held step's job that somebody retried or staged waits on; a doomed one stays cancelled.
  IF put_back IS NOT NULL THEN
    UPDATE /* schema */oban_jobs AS job
    SET state = 'suspended', attempt = CASE job.state WHEN 'executing' THEN greatest(0, job.attempt - 1) ELSE job.attempt END
    WHERE job.id = ANY(put_back) AND job.state::text IN ('available', 'scheduled', 'retryable', 'executing');
  END IF;
  IF dead IS NOT NULL THEN
    PERFORM /* schema */baton_cancel_jobs(dead);
  END IF;

  SELECT array_agg(ended.id), array_agg(ended.state) INTO settled, states
  FROM unnest(settled, states) AS ended (id, state) WHERE ended.state IN ('completed', 'cancelled', 'discarded');
  IF settled IS NOT NULL THEN
    PERFORM /* schema */baton_follow(settled, states, NULL);
  END IF;
  RETURN NULL;
END
$$;
