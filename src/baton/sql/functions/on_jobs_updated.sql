-- on_jobs_updated: after every UPDATE of oban_jobs, whoever made it, steps and jobs agree again.
-- It compares states instead of watching transitions: plain jobs have no step, and our own statements move the step first, so
-- both end after one index look-up per row. Recursion is bounded by the same comparison, never by depth: a cancel that comes
-- from a user's own trigger arrives here at depth 2 and counts like any other. A held step's job waits on, and so does that of a
-- paused run; that of a step which is doomed, or was cancelled while it ran, does not run again.
-- Every change passes here, so those who follow a run are told here.
CREATE OR REPLACE FUNCTION /* schema */baton_on_jobs_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp /* pinned */ AS $$
DECLARE
  settled bigint[];
  states text[];
  put_back bigint[];
  dead bigint[];
  followed boolean;
BEGIN
  SELECT array_agg(step.id) FILTER (WHERE step.state IN ('held', 'released')),
         array_agg(job.state::text) FILTER (WHERE step.state IN ('held', 'released')),
         array_agg(job.id) FILTER (WHERE job.state NOT IN ('completed', 'cancelled', 'discarded')
                                     AND NOT step.doomed AND step.cancel_requested_at IS NULL),
         array_agg(job.id) FILTER (WHERE job.state NOT IN ('completed', 'cancelled', 'discarded')
                                     AND (step.doomed OR step.cancel_requested_at IS NOT NULL)),
         -- Asked here, because a statement of its own would cost more; see announce.
         EXISTS (SELECT FROM /* schema */workflow_subscribers AS subscriber
                 WHERE subscriber.topic >= 'w' AND subscriber.expires_at > clock_timestamp())
  INTO settled, states, put_back, dead, followed
  FROM changed AS job JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id
  WHERE CASE WHEN job.state IN ('completed', 'cancelled', 'discarded') THEN step.state IN ('held', 'released')
             WHEN job.state = 'suspended' THEN false
             ELSE step.state = 'held' OR step.doomed OR (
               step.state = 'released' AND job.state <> 'executing' AND (
                 step.cancel_requested_at IS NOT NULL
                 -- No EXISTS: that may be planned as a look at all workflows.
                 OR (SELECT workflow.paused_at FROM /* schema */workflows AS workflow WHERE workflow.id = step.workflow_id) IS NOT NULL
               )) END;

  IF followed THEN
    BEGIN
      PERFORM /* schema */baton_announce(ARRAY(
        SELECT step.id FROM changed AS job JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id));
    EXCEPTION WHEN OTHERS THEN
      -- As in follow. Whoever is not told looks by itself.
      IF left(SQLSTATE, 2) IN ('40', '53', '55', '57') THEN
        RAISE;
      END IF;
    END;
  END IF;
  IF settled IS NULL AND dead IS NULL THEN
    RETURN NULL;
  END IF;

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
