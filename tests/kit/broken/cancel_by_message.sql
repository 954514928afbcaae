-- Broken cancel: tells the nodes, and writes nothing down.
-- instead of
  IF NOT /* schema */baton_lock_jobs(p_workflow, false) THEN
    RETURN NULL;
  END IF;
-- this
  PERFORM /* schema */baton_tell_to_stop(ARRAY(
    SELECT step.job_id FROM /* schema */workflow_nodes AS step WHERE step.workflow_id = p_workflow));
  RETURN ARRAY['cancelled'];
