-- rerun: insert a run that does part of another one again. Steps that completed and are not downstream of p_from are copied with
-- their results, as settled; all others run, unless a skipped one keeps them from it. The other run may be live, and stays as it is.
-- p_from: names of steps, null for all. Returns whether there is such a run. Errors: BT002 as in retry; BT004 when there is no
-- such step, its name as the detail. The new run has no key: that is for whoever inserts.
CREATE OR REPLACE FUNCTION /* schema */baton_rerun(p_workflow uuid, p_id uuid, p_from text[]) RETURNS boolean
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  source record;
  missing text;
  cone bigint[];
  gone text[];
  queues text[];
  step_sequence regclass := pg_get_serial_sequence('/* schema */workflow_nodes', 'id');
  job_sequence regclass := pg_get_serial_sequence('/* schema */oban_jobs', 'id');
BEGIN
  -- Nothing of it settles while it is copied.
  SELECT workflow.* INTO source FROM /* schema */workflows AS workflow WHERE workflow.id = p_workflow FOR SHARE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  SELECT wanted.name INTO missing FROM unnest(p_from) AS wanted (name) WHERE NOT EXISTS (
    SELECT FROM /* schema */workflow_nodes AS step WHERE step.workflow_id = p_workflow AND step.name = wanted.name);
  IF missing IS NOT NULL THEN
    RAISE EXCEPTION 'workflow % has no step %', p_workflow, missing USING ERRCODE = 'BT004', DETAIL = missing;
  END IF;

  WITH RECURSIVE reached AS (
    SELECT step.id FROM /* schema */workflow_nodes AS step
    WHERE step.workflow_id = p_workflow
      AND (p_from IS NULL OR step.name = ANY(p_from) OR step.state NOT IN ('completed', 'skipped'))
    UNION
    SELECT edge.dependent_id FROM reached JOIN /* schema */workflow_edges AS edge ON edge.dependency_id = reached.id
  )
  SELECT coalesce(array_agg(reached.id), '{}') INTO cone FROM reached;

  INSERT INTO /* schema */workflows (id, name, definition_hash, steps, unsettled, finished_at, outcome, rerun_of, deadline_at)
  VALUES (p_id, source.name, source.definition_hash, source.steps, cardinality(cone),
          CASE WHEN cone = '{}' THEN now() END, CASE WHEN cone = '{}' THEN 'completed' END,
          p_workflow, now() + (source.deadline_at - coalesce(source.revived_at, source.inserted_at)));
  IF cone = '{}' THEN
    PERFORM /* schema */baton_complete(ARRAY[p_id]);
  END IF;

  -- A budget of its own as large as it was declared, of which nothing is spent yet; and the shared ones.
  INSERT INTO /* schema */workflow_budgets (workflow_id, limit_usd, limit_tokens, limit_calls, on_exhausted, unpriced)
  SELECT p_id, budget.limit_usd, budget.limit_tokens, budget.limit_calls, budget.on_exhausted, budget.unpriced
  FROM /* schema */workflow_budgets AS budget WHERE budget.workflow_id = p_workflow;
  INSERT INTO /* schema */workflow_budget_runs (workflow_id, budget_id)
  SELECT p_id, budget.id FROM /* schema */workflow_budgets AS budget WHERE budget.workflow_id = p_id
  UNION ALL
  SELECT p_id, budget.id FROM /* schema */workflow_budget_runs AS drawn JOIN /* schema */workflow_budgets AS budget ON budget.id = drawn.budget_id
  WHERE drawn.workflow_id = p_workflow AND budget.workflow_id IS NULL;

  -- Copied as it settled, under a job id that no job has.
  INSERT INTO /* schema */workflow_nodes
    (workflow_id, position, name, function, job_id, deps, ignore_cancelled, ignore_discarded, runs_on, hooked, debug, budgeted,
     state, waiting_on, doomed, attempt, result, error, started_at, settled_at)
  SELECT p_id, step.position, step.name, step.function, -nextval(step_sequence), step.deps, step.ignore_cancelled, step.ignore_discarded,
         step.runs_on, step.hooked, step.debug, step.budgeted, step.state, 0, step.doomed, step.attempt, step.result, step.error, step.started_at, step.settled_at
  FROM /* schema */workflow_nodes AS step
  WHERE step.workflow_id = p_workflow AND NOT EXISTS (SELECT FROM unnest(cone) AS again (id) WHERE again.id = step.id)
  ORDER BY step.position;
  INSERT INTO /* schema */workflow_nodes
    (workflow_id, position, name, function, job_id, deps, ignore_cancelled, ignore_discarded, runs_on, hooked, debug, budgeted,
     state, waiting_on)
  SELECT p_id, step.position, step.name, step.function, nextval(job_sequence), step.deps, step.ignore_cancelled, step.ignore_discarded,
         step.runs_on, step.hooked, step.debug, step.budgeted, 'held', 1
  FROM unnest(cone) AS again (id) JOIN /* schema */workflow_nodes AS step ON step.id = again.id
  ORDER BY step.position;
  INSERT INTO /* schema */workflow_edges (dependency_id, dependent_id)
  SELECT dependency.id, dependent.id
  FROM /* schema */workflow_nodes AS dependent
  CROSS JOIN LATERAL unnest(dependent.deps) AS wanted (name)
  JOIN /* schema */workflow_nodes AS dependency ON dependency.workflow_id = p_id AND dependency.name = wanted.name
  WHERE dependent.workflow_id = p_id;
  UPDATE /* schema */workflow_nodes AS step
  SET waiting_on = counted.unsettled, state = CASE counted.unsettled WHEN 0 THEN 'released' ELSE 'held' END
  FROM (
    SELECT held.id, (SELECT count(*)::integer FROM /* schema */workflow_edges AS edge
                     JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
                     WHERE edge.dependent_id = held.id AND dependency.state = 'held') AS unsettled
    FROM /* schema */workflow_nodes AS held WHERE held.workflow_id = p_id AND held.state = 'held'
  ) AS counted
  WHERE step.id = counted.id AND step.state = 'held';

  WITH jobs AS (
    INSERT INTO /* schema */oban_jobs (id, state, queue, worker, args, meta, tags, max_attempts, priority, scheduled_at)
    OVERRIDING SYSTEM VALUE
    SELECT step.job_id, CASE step.state WHEN 'held' THEN 'suspended' ELSE 'available' END::/* schema */oban_job_state,
           job.queue, job.worker, job.args,
           job.meta - ARRAY['parked', 'no_room', 'rescued', 'snoozed', 'cancel_attempted_at'] || jsonb_build_object('workflow_id', p_id),
           job.tags, job.max_attempts, job.priority, timezone('UTC', now())
    FROM /* schema */workflow_nodes AS step
    JOIN /* schema */workflow_nodes AS original ON original.workflow_id = p_workflow AND original.name = step.name
    JOIN /* schema */oban_jobs AS job ON job.id = original.job_id
    WHERE step.workflow_id = p_id AND step.state IN ('held', 'released')
    ORDER BY step.job_id
    RETURNING queue, state
  )
  SELECT coalesce(array_agg(DISTINCT queue) FILTER (WHERE state = 'available'), '{}') INTO queues FROM jobs;
  -- Looked for only now: Oban prunes whenever it likes, and whoever holds a run does not wait for its jobs.
  SELECT array_agg(step.name ORDER BY step.position) INTO gone
  FROM /* schema */workflow_nodes AS step
  WHERE step.workflow_id = p_id AND step.state IN ('held', 'released')
    AND NOT EXISTS (SELECT FROM /* schema */oban_jobs AS job WHERE job.id = step.job_id);
  IF gone IS NOT NULL THEN
    RAISE EXCEPTION 'jobs of workflow % are gone', p_workflow USING ERRCODE = 'BT002', DETAIL = array_to_string(gone, ' ');
  END IF;
  PERFORM /* schema */baton_wake(queues || /* schema */baton_skip(p_id), '{}', NULL);
  PERFORM /* schema */baton_announce_runs(ARRAY[p_id], true);
  RETURN true;
END
$$;
