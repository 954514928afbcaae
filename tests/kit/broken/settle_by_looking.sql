-- Broken: releases what has no unsettled dependency that is visible, instead of counting down under the workflow's lock.
CREATE OR REPLACE FUNCTION /* schema */baton_settle(
  p_ids bigint[], p_states text[], p_results text[], p_errors text[]
) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  settled bigint[];
  unfortunate bigint[];
  released bigint[];
BEGIN
  WITH done AS (
    UPDATE /* schema */workflow_nodes AS step
    SET state = outcome.state, waiting_on = 0, error = outcome.error, settled_at = clock_timestamp(),
        result = CASE WHEN outcome.state = 'completed'
                      THEN jsonb_build_object('value', coalesce(outcome.result::jsonb, 'null')) END
    FROM unnest(p_ids, p_states, p_results, p_errors) AS outcome (id, state, result, error)
    WHERE step.id = outcome.id AND step.state IN ('held', 'released')
    RETURNING step.id, step.state
  )
  SELECT array_agg(id), array_agg(id) FILTER (WHERE state <> 'completed') INTO settled, unfortunate FROM done;
  IF settled IS NULL THEN
    RETURN '{}';
  END IF;
  settled := settled || coalesce(/* schema */baton_doom(unfortunate), '{}');

  WITH looked AS (
    SELECT step.id, count(dependency.id) FILTER (WHERE dependency.settled_at IS NULL)::integer AS unsettled
    FROM /* schema */workflow_nodes AS step
    JOIN /* schema */workflow_edges AS edge ON edge.dependent_id = step.id
    JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
    WHERE step.state = 'held' AND step.id IN (
      SELECT edge.dependent_id FROM /* schema */workflow_edges AS edge WHERE edge.dependency_id = ANY(settled))
    GROUP BY step.id
  ), updated AS (
    UPDATE /* schema */workflow_nodes AS step
    SET waiting_on = looked.unsettled, state = CASE WHEN looked.unsettled = 0 THEN 'released' ELSE 'held' END
    FROM looked WHERE step.id = looked.id AND step.state = 'held'
    RETURNING step.job_id, step.state
  )
  SELECT coalesce(array_agg(job_id) FILTER (WHERE state = 'released'), '{}') INTO released FROM updated;

  PERFORM /* schema */baton_finish(settled);
  RETURN /* schema */baton_release_jobs(/* schema */baton_take_jobs(released));
END
$$;
