-- retry: revive what failed in a run, in place: the steps that ended cancelled or discarded, and everything downstream of them that
-- has settled; what was released and has not started waits again. What does not hang on a failure keeps its result. A finished run
-- begins its next generation.
-- Returns the names of the steps revived, none if nothing had failed; null where there is no such run. Errors: BT002 when jobs
-- are gone, with the names of their steps as the detail; BT003 while the run is being cancelled, or while a job downstream of a
-- failure runs, with the names of such steps as the detail: it would go on with what is no longer so.
CREATE OR REPLACE FUNCTION /* schema */baton_retry(p_workflow uuid) RETURNS text[] LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  run record;
  cone bigint[];
  names text[];
  gone text[];
  running text[];
  queues text[];
BEGIN
  IF NOT /* schema */baton_lock_jobs(p_workflow, true) THEN
    RETURN NULL;
  END IF;
  SELECT workflow.* INTO run FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow;
  IF run.finished_at IS NULL AND run.cancel_cause IS NOT NULL THEN
    RAISE EXCEPTION 'workflow % is being cancelled', p_workflow USING ERRCODE = 'BT003';
  END IF;

  WITH RECURSIVE reached AS (
    SELECT step.id FROM /* schema */workflow_nodes AS step
    WHERE step.workflow_id = p_workflow AND step.state IN ('cancelled', 'discarded')
    UNION
    SELECT edge.dependent_id FROM reached JOIN /* schema */workflow_edges AS edge ON edge.dependency_id = reached.id
  )
  SELECT array_agg(step.id), array_agg(step.name ORDER BY step.position) FILTER (WHERE step.settled_at IS NOT NULL),
         array_agg(step.name ORDER BY step.position) FILTER (WHERE job.id IS NULL),
         array_agg(step.name ORDER BY step.position) FILTER (WHERE job.state = 'executing')
  INTO cone, names, gone, running
  FROM reached JOIN /* schema */workflow_nodes AS step ON step.id = reached.id
  LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
  WHERE step.state <> 'held';
  IF cone IS NULL THEN
    RETURN '{}';
  END IF;
  IF gone IS NOT NULL THEN
    RAISE EXCEPTION 'jobs of workflow % are gone', p_workflow USING ERRCODE = 'BT002', DETAIL = array_to_string(gone, ' ');
  END IF;
  IF running IS NOT NULL THEN
    RAISE EXCEPTION 'steps of workflow % are running', p_workflow USING ERRCODE = 'BT003', DETAIL = array_to_string(running, ' ');
  END IF;

  -- A step whose inputs will be others must not find what it stored for these.
  DELETE FROM /* schema */workflow_checkpoints AS checkpoint WHERE checkpoint.step_id IN (
    SELECT edge.dependent_id FROM unnest(cone) AS revived (id)
    JOIN /* schema */workflow_edges AS edge ON edge.dependency_id = revived.id);
  -- Attempts are counted anew, so the new ones would go on in the streams of the old.
  DELETE FROM /* schema */workflow_streams AS stream USING unnest(cone) AS revived (id) WHERE stream.step_id = revived.id;
  DELETE FROM /* schema */workflow_progress AS progress USING unnest(cone) AS revived (id) WHERE progress.step_id = revived.id;
  DELETE FROM /* schema */workflow_deliveries AS delivery
  WHERE delivery.workflow_id = p_workflow AND delivery.step_id IN (SELECT unnest(cone));

  UPDATE /* schema */workflow_nodes AS step
  SET state = 'held', waiting_on = 1, owed = false, doomed = false, attempt = NULL, result = NULL, error = NULL,
      started_at = NULL, settled_at = NULL, cancel_requested_at = NULL, cancel_reason = NULL
  FROM unnest(cone) AS revived (id) WHERE step.id = revived.id AND step.state <> 'held';
  UPDATE /* schema */workflow_nodes AS step
  SET waiting_on = counted.unsettled, state = CASE counted.unsettled WHEN 0 THEN 'released' ELSE 'held' END,
      released_at = CASE counted.unsettled WHEN 0 THEN clock_timestamp() END
  FROM (
    SELECT held.id, (SELECT count(*)::integer FROM /* schema */workflow_edges AS edge
                     JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
                     WHERE edge.dependent_id = held.id AND dependency.state IN ('held', 'released')) AS unsettled
    FROM /* schema */workflow_nodes AS held WHERE held.workflow_id = p_workflow AND held.state = 'held'
  ) AS counted
  WHERE step.id = counted.id AND step.state = 'held';

  PERFORM /* schema */baton_recount(p_workflow);
  IF run.finished_at IS NOT NULL THEN
    UPDATE /* schema */workflows AS workflow
    SET generation = workflow.generation + 1, paused_at = NULL, paused_for = NULL, cancel_requested_at = NULL, cancel_reason = NULL, cancel_cause = NULL,
        revived_at = now(), deadline_at = now() + (workflow.deadline_at - coalesce(workflow.revived_at, workflow.inserted_at))
    WHERE workflow.id = p_workflow;
  END IF;

  -- Attempts are counted anew. A step that never ran keeps the time it was scheduled for; one that did runs now.
  WITH revived AS (
    UPDATE /* schema */oban_jobs AS job
    SET state = CASE WHEN step.state = 'held' THEN 'suspended' WHEN job.attempted_at IS NULL AND job.scheduled_at > timezone('UTC', now())
                     THEN 'scheduled' ELSE 'available' END::/* schema */oban_job_state,
        scheduled_at = CASE WHEN job.attempted_at IS NULL THEN job.scheduled_at ELSE timezone('UTC', now()) END,
        attempt = 0, completed_at = NULL, cancelled_at = NULL, discarded_at = NULL, meta = job.meta - 'cancel_attempted_at'
    FROM unnest(cone) AS reached (id) JOIN /* schema */workflow_nodes AS step ON step.id = reached.id
    WHERE job.id = step.job_id
    RETURNING job.queue, job.state
  )
  SELECT coalesce(array_agg(DISTINCT queue) FILTER (WHERE state = 'available'), '{}') INTO queues FROM revived;
  PERFORM /* schema */baton_wake(queues || /* schema */baton_skip(p_workflow), '{}', NULL);
  PERFORM /* schema */baton_announce_runs(ARRAY[p_workflow], true);
  RETURN names;
END
$$;
