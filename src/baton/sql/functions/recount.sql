-- recount: a live run's counters, made anew from its steps. The caller has locked the run.
CREATE OR REPLACE FUNCTION /* schema */baton_recount(p_workflow uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE /* schema */workflows AS workflow
  SET unsettled = counted.unsettled, failed = counted.failed, excused = counted.excused, finished_at = NULL, outcome = NULL
  FROM (
    SELECT count(*) FILTER (WHERE step.state IN ('held', 'released'))::integer AS unsettled,
           count(*) FILTER (WHERE step.state IN ('cancelled', 'discarded'))::integer AS failed,
           count(*) FILTER (WHERE step.state IN ('cancelled', 'discarded') AND (
             -- As in finish.
             SELECT bool_and(CASE step.state WHEN 'cancelled' THEN dependent.ignore_cancelled
                                             ELSE dependent.ignore_discarded END) FILTER (WHERE dependent.runs_on = 'success')
             FROM /* schema */workflow_edges AS edge
             JOIN /* schema */workflow_nodes AS dependent ON dependent.id = edge.dependent_id
             WHERE edge.dependency_id = step.id
           ) IS TRUE)::integer AS excused
    FROM /* schema */workflow_nodes AS step WHERE step.workflow_id = p_workflow
  ) AS counted
  WHERE workflow.id = p_workflow;
END
$$;
