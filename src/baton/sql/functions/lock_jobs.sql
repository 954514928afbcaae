-- lock_jobs: lock the jobs of a run, ids ascending, and then the run: whoever acks one of them comes before this or after it.
-- What a caller reads next, in statements of its own, stays true until it commits. p_all: the jobs of settled steps as well.
-- Returns whether there is such a run. Should a retry have revived steps while this waited, their jobs are not locked, and whoever
-- holds a run never waits for a job: 40001, try again.
CREATE OR REPLACE FUNCTION /* schema */baton_lock_jobs(p_workflow uuid, p_all boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  locked bigint[];
BEGIN
  SELECT array_agg(held.id) INTO locked FROM (
    SELECT job.id FROM /* schema */oban_jobs AS job
    WHERE job.id IN (
      SELECT step.job_id FROM /* schema */workflow_nodes AS step
      WHERE step.workflow_id = p_workflow AND (p_all OR step.state IN ('held', 'released')))
    ORDER BY job.id FOR UPDATE
  ) AS held;
  PERFORM 1 FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM 1 FROM /* schema */oban_jobs AS job WHERE job.id IN (
    SELECT step.job_id FROM /* schema */workflow_nodes AS step
    WHERE step.workflow_id = p_workflow AND step.state IN ('held', 'released') EXCEPT SELECT unnest(locked));
  IF FOUND THEN
    RAISE EXCEPTION 'workflow % was revived meanwhile; try again', p_workflow USING ERRCODE = 'serialization_failure';
  END IF;
  RETURN true;
END
$$;
