-- prune: delete finished runs whose jobs are all gone, whole, with everything that is kept of them, the oldest first.
-- p_limit: steps and chunks deleted at most, but at least one run. p_age: seconds since they finished, so that runs whose jobs are certainly
-- there are not looked at. p_after: where the last call stopped; it goes on from there, so that a run which keeps its jobs does not
-- bar the way. A run whose end is still to be delivered stays, but not for telemetry's sake: perhaps nobody listens any more.
-- Returns rows deleted by table, and where it stopped, null at the end.
CREATE OR REPLACE FUNCTION /* schema */baton_prune(
  p_limit integer, p_age double precision, p_after timestamptz, OUT deleted jsonb, OUT stopped_at timestamptz
) LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  seen uuid[];
  ids uuid[];
  steps bigint[];
  count bigint;
BEGIN
  deleted := '{}';
  -- Whoever revives one holds its row, or sees the state here when it has it.
  SELECT array_agg(old.id), CASE count(*) WHEN greatest(p_limit, 1000) THEN max(old.finished_at) END INTO seen, stopped_at FROM (
    SELECT workflow.id, workflow.finished_at FROM /* schema */workflows AS workflow
    WHERE workflow.finished_at <= clock_timestamp() - make_interval(secs => p_age)
      AND workflow.finished_at >= coalesce(p_after, '-infinity')
    ORDER BY workflow.finished_at LIMIT greatest(p_limit, 1000) FOR UPDATE SKIP LOCKED
  ) AS old;
  SELECT array_agg(dead.id) INTO ids FROM (
    SELECT workflow.id, sum(weight.rows) OVER (ORDER BY workflow.finished_at, workflow.id) - weight.rows AS before
    FROM /* schema */workflows AS workflow
    CROSS JOIN LATERAL (
      SELECT greatest(workflow.steps, 1) + coalesce(sum(progress.chunks), 0) AS rows
      FROM /* schema */workflow_progress AS progress WHERE progress.workflow_id = workflow.id
    ) AS weight
    WHERE workflow.id = ANY(seen)
      AND NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
                      WHERE step.workflow_id = workflow.id)
      AND NOT EXISTS (SELECT FROM /* schema */workflow_deliveries AS delivery
                      WHERE delivery.workflow_id = workflow.id AND delivery.consumer IS DISTINCT FROM 'baton.workflow.failed')
  ) AS dead
  WHERE dead.before < p_limit;
  IF ids IS NULL THEN
    RETURN;
  END IF;

  steps := ARRAY(SELECT step.id FROM unnest(ids) AS dead (id) JOIN /* schema */workflow_nodes AS step ON step.workflow_id = dead.id);
  DELETE FROM /* schema */workflow_edges AS edge USING unnest(steps) AS dead (id) WHERE edge.dependency_id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflow_edges', count);
  DELETE FROM /* schema */workflow_checkpoints AS checkpoint USING unnest(steps) AS dead (id) WHERE checkpoint.step_id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflow_checkpoints', count);
  DELETE FROM /* schema */workflow_deliveries AS delivery USING unnest(ids) AS dead (id) WHERE delivery.workflow_id = dead.id;
  DELETE FROM /* schema */workflow_repairs AS repair USING unnest(steps) AS dead (id) WHERE repair.step_id = dead.id;
  DELETE FROM /* schema */workflow_debug_logs AS log USING unnest(ids) AS dead (id) WHERE log.workflow_id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflow_debug_logs', count);
  -- What they reserved of shared budgets and nobody settled was paid for, for all that is known.
  PERFORM 1 FROM /* schema */workflow_budgets AS budget
  WHERE budget.workflow_id = ANY(ids) OR budget.id IN (
    SELECT reservation.budget_id FROM unnest(steps) AS dead (id)
    JOIN /* schema */workflow_reservations AS reservation ON reservation.step_id = dead.id)
  ORDER BY budget.id FOR UPDATE;
  PERFORM /* schema */baton_charge_lost(ARRAY(
    SELECT DISTINCT reservation.budget_id FROM unnest(steps) AS dead (id)
    JOIN /* schema */workflow_reservations AS reservation ON reservation.step_id = dead.id));
  DELETE FROM /* schema */workflow_reservations AS reservation USING unnest(steps) AS dead (id) WHERE reservation.step_id = dead.id;
  DELETE FROM /* schema */workflow_budget_runs AS drawn USING unnest(ids) AS dead (id) WHERE drawn.workflow_id = dead.id;
  DELETE FROM /* schema */workflow_budgets AS budget USING unnest(ids) AS dead (id) WHERE budget.workflow_id = dead.id;
  DELETE FROM /* schema */workflow_streams AS stream USING unnest(steps) AS dead (id) WHERE stream.step_id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflow_streams', count);
  DELETE FROM /* schema */workflow_progress AS progress USING unnest(steps) AS dead (id) WHERE progress.step_id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflow_progress', count);
  DELETE FROM /* schema */workflow_completions AS completion USING unnest(ids) AS dead (id) WHERE completion.workflow_id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflow_completions', count);
  DELETE FROM /* schema */workflow_nodes AS step USING unnest(steps) AS dead (id) WHERE step.id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflow_nodes', count);
  DELETE FROM /* schema */workflows AS workflow USING unnest(ids) AS dead (id) WHERE workflow.id = dead.id;
  GET DIAGNOSTICS count = ROW_COUNT;
  deleted := deleted || jsonb_build_object('workflows', count);
END
$$;
