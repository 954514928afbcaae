-- cancel: end a run, or some of its steps. Steps that do not run settle here; those that do are asked to end, in their own row
-- and by notification, and end cancelled whatever their attempt comes to. Nothing that was cancelled starts afterwards.
-- p_steps: names, null for the whole run: all of it but the steps that run whatever happens, which a pause holds back no longer.
-- p_cause: request or deadline; a deadline that was moved meanwhile ends nothing, and 'executing' is returned.
-- Returns what the run ends as, or, for steps, the state in which each one ends, in the order of their names; null where there is
-- no such run or step. The first cancel of a run counts; a second changes nothing and returns the same.
CREATE OR REPLACE FUNCTION /* schema */baton_cancel(
  p_workflow uuid, p_steps text[], p_reason text, p_cause text
) RETURNS text[] LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  run record;
  asked bigint[];
  ended bigint[];
  jobs bigint[];
  queues text[] := '{}';
BEGIN
  IF NOT /* schema */baton_lock_jobs(p_workflow, false) THEN
    RETURN NULL;
  END IF;
  SELECT workflow.outcome, workflow.cancel_cause, workflow.paused_at, workflow.deadline_at INTO run
  FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow;

  IF run.outcome IS NULL AND (p_cause <> 'deadline' OR run.deadline_at <= clock_timestamp()) THEN
    IF p_steps IS NULL AND run.cancel_cause IS NULL THEN
      UPDATE /* schema */workflows AS workflow
      SET cancel_requested_at = clock_timestamp(), cancel_reason = p_reason, cancel_cause = p_cause, paused_at = NULL, paused_for = NULL
      WHERE workflow.id = p_workflow AND workflow.cancel_cause IS NULL;
    END IF;

    SELECT array_agg(job.id) FILTER (WHERE job.state = 'executing'),
           array_agg(step.id ORDER BY job.id) FILTER (WHERE job.state IS DISTINCT FROM 'executing'),
           array_agg(job.id ORDER BY job.id) FILTER (WHERE job.state <> 'executing')
    INTO asked, ended, jobs
    FROM /* schema */workflow_nodes AS step LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
    WHERE step.workflow_id = p_workflow AND step.state IN ('held', 'released')
      AND CASE WHEN p_steps IS NULL THEN step.runs_on <> 'always' ELSE step.name = ANY(p_steps) END;

    IF asked IS NOT NULL THEN
      UPDATE /* schema */workflow_nodes AS step SET cancel_requested_at = clock_timestamp(), cancel_reason = p_reason
      WHERE step.job_id = ANY(asked) AND step.state = 'released' AND step.cancel_requested_at IS NULL;
      PERFORM /* schema */baton_tell_to_stop(asked);
    END IF;
    IF ended IS NOT NULL THEN
      queues := /* schema */baton_settle(
        ended, array_fill('cancelled'::text, ARRAY[cardinality(ended)]),
        array_fill(NULL::text, ARRAY[cardinality(ended)]), array_fill(p_reason, ARRAY[cardinality(ended)]));
      UPDATE /* schema */workflow_nodes AS step SET owed = false WHERE step.id = ANY(ended) AND step.owed;
      PERFORM /* schema */baton_cancel_jobs(jobs);
    END IF;
    IF p_steps IS NULL AND run.cancel_cause IS NULL AND run.paused_at IS NOT NULL THEN
      queues := queues || /* schema */baton_release_jobs(ARRAY(
        SELECT step.job_id FROM /* schema */workflow_nodes AS step
        WHERE step.workflow_id = p_workflow AND step.state = 'released'));
    END IF;
    PERFORM /* schema */baton_wake(queues, '{}', NULL);
    PERFORM /* schema */baton_announce(asked);
    PERFORM /* schema */baton_announce_runs(ARRAY[p_workflow], false);
  END IF;

  IF p_steps IS NULL THEN
    RETURN (SELECT ARRAY[coalesce(workflow.outcome, CASE workflow.cancel_cause WHEN 'request' THEN 'cancelled'
                                                                         WHEN 'deadline' THEN 'failed' ELSE 'executing' END)]
            FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow);
  END IF;
  RETURN ARRAY(
    SELECT CASE WHEN step.state IN ('held', 'released') THEN 'cancelled' ELSE step.state END
    FROM unnest(p_steps) WITH ORDINALITY AS wanted (name, place)
    LEFT JOIN /* schema */workflow_nodes AS step ON step.workflow_id = p_workflow AND step.name = wanted.name
    ORDER BY wanted.place);
END
$$;
