-- Broken settle: releases what has no unsettled dependency in sight, instead of counting down under the workflow's lock.
-- instead of
  PERFORM 1 FROM /* schema */workflows AS workflow
  WHERE workflow.id IN (SELECT step.workflow_id FROM /* schema */workflow_nodes AS step WHERE step.id = ANY(p_ids))
  ORDER BY workflow.id FOR NO KEY UPDATE;
-- this
-- instead of
    SELECT * INTO went FROM /* schema */baton_release(level);
    queues := queues || went.queues;
    EXIT WHEN went.skipped = '{}';
-- this
  DECLARE
    released bigint[];
  BEGIN
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
    IF released <> '{}' THEN
      PERFORM /* schema */baton_owe(released, /* schema */baton_take_jobs(released));
    END IF;
    queues := /* schema */baton_release_jobs(/* schema */baton_take_jobs(released));
  END;
  EXIT;
