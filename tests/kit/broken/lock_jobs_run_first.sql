-- Broken lock_jobs: takes the run first and then waits for its jobs.
-- instead of
BEGIN
-- this
BEGIN
  PERFORM 1 FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow FOR NO KEY UPDATE;
