-- resume: let a paused run go on; one that is not paused does already. Returns as pause does.
CREATE OR REPLACE FUNCTION /* schema */baton_resume(p_workflow uuid) RETURNS text LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  run record;
BEGIN
  IF NOT /* schema */baton_lock_jobs(p_workflow, false) THEN
    RETURN NULL;
  END IF;
  SELECT workflow.outcome, workflow.paused_at INTO run FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow;
  IF run.paused_at IS NOT NULL THEN
    UPDATE /* schema */workflows AS workflow SET paused_at = NULL, paused_for = NULL
    WHERE workflow.id = p_workflow AND workflow.paused_at IS NOT NULL;
    PERFORM /* schema */baton_wake(/* schema */baton_release_jobs(ARRAY(
      SELECT step.job_id FROM /* schema */workflow_nodes AS step
      WHERE step.workflow_id = p_workflow AND step.state = 'released')), '{}', NULL);
    PERFORM /* schema */baton_announce_runs(ARRAY[p_workflow], false);
  END IF;
  RETURN coalesce(run.outcome, 'executing');
END
$$;
