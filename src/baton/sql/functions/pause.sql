-- pause: let nothing more of a run start. What runs goes on; the trigger puts back whatever would become available meanwhile.
-- Returns the outcome of a run that has finished and cannot be paused, 'executing' for one that is paused now, null for none.
CREATE OR REPLACE FUNCTION /* schema */baton_pause(p_workflow uuid) RETURNS text LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  ended text;
BEGIN
  IF NOT /* schema */baton_lock_jobs(p_workflow, false) THEN
    RETURN NULL;
  END IF;
  SELECT workflow.outcome INTO ended FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow;
  IF ended IS NULL THEN
    -- One that a budget had paused stays paused from now on when something is added to that.
    UPDATE /* schema */workflows AS workflow SET paused_at = coalesce(workflow.paused_at, clock_timestamp()), paused_for = NULL
    WHERE workflow.id = p_workflow AND (workflow.paused_at IS NULL OR workflow.paused_for IS NOT NULL);
    UPDATE /* schema */oban_jobs AS job SET state = 'suspended'
    WHERE job.id IN (SELECT step.job_id FROM /* schema */workflow_nodes AS step
                     WHERE step.workflow_id = p_workflow AND step.state = 'released')
      AND job.state::text IN ('available', 'scheduled', 'retryable');
    PERFORM /* schema */baton_announce_runs(ARRAY[p_workflow], false);
  END IF;
  RETURN coalesce(ended, 'executing');
END
$$;
