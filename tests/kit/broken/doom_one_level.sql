-- Broken: cancels the steps next to the failure and forgets those behind them.
CREATE OR REPLACE FUNCTION /* schema */baton_doom(p_ids bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  doomed bigint[];
  jobs bigint[];
BEGIN
  WITH hit AS (
    UPDATE /* schema */workflow_nodes AS step
    SET state = 'cancelled', doomed = true, waiting_on = 0, settled_at = clock_timestamp()
    FROM /* schema */workflow_edges AS edge JOIN /* schema */workflow_nodes AS cause ON cause.id = edge.dependency_id
    WHERE edge.dependency_id = ANY(p_ids) AND step.id = edge.dependent_id AND step.state = 'held'
      AND NOT CASE cause.state WHEN 'cancelled' THEN step.ignore_cancelled ELSE step.ignore_discarded END
    RETURNING step.id, step.job_id
  )
  SELECT coalesce(array_agg(id), '{}'), coalesce(array_agg(job_id), '{}') INTO doomed, jobs FROM hit;
  PERFORM /* schema */baton_cancel_jobs(/* schema */baton_take_jobs(jobs));
  RETURN doomed;
END
$$;
