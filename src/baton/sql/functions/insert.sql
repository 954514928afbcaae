-- insert: write whole workflows, all or none, in the caller's transaction.
-- p_w*: one element per workflow. p_s*: one per step, p_sworkflow giving its workflow's place in p_wids, from 1.
-- p_b*: one per budget of a workflow, see fund. p_edependency, p_edependent: places in the steps' arrays, from 1. Returns a row per workflow, in the order given: its id, or
-- that of the live workflow which already has its key. A live one with another definition is an error, BT001: its id is the
-- detail, the key the column, and nothing is written. The parameters with defaults are younger than the first version of the
-- library, which calls this without them.
CREATE OR REPLACE FUNCTION /* schema */baton_insert(
  p_wids uuid[], p_wnames text[], p_wkeys text[], p_whashes text[], p_wsteps integer[],
  p_sworkflow integer[], p_snames text[], p_sfunctions text[], p_sworkers text[], p_squeues text[], p_sargs text[], p_smetas text[],
  p_stags text[], p_smax_attempts integer[], p_spriorities integer[], p_sscheduled_ats timestamptz[], p_sdeps text[],
  p_signore_cancelled boolean[], p_signore_discarded boolean[], p_swaiting_on integer[],
  p_edependency integer[], p_edependent integer[], p_local uuid[], p_origin text,
  p_wdeadline_ats timestamptz[] DEFAULT '{}', p_wdeadline_ins double precision[] DEFAULT '{}',
  p_sruns_on text[] DEFAULT '{}', p_shooked boolean[] DEFAULT '{}', p_sdebug boolean[] DEFAULT '{}',
  p_bworkflow integer[] DEFAULT '{}', p_bkeys text[] DEFAULT '{}', p_busd numeric[] DEFAULT '{}', p_btokens bigint[] DEFAULT '{}',
  p_bcalls bigint[] DEFAULT '{}', p_bon_exhausted text[] DEFAULT '{}', p_bunpriced text[] DEFAULT '{}'
) RETURNS TABLE (id uuid, inserted boolean)
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  ids uuid[] := p_wids;
  fresh boolean[] := array_fill(true, ARRAY[cardinality(p_wids)]);
  live record;
  step_ids bigint[];
  job_ids bigint[];
  queues text[];
  place integer;
  step_sequence regclass := pg_get_serial_sequence('/* schema */workflow_nodes', 'id');
  job_sequence regclass := pg_get_serial_sequence('/* schema */oban_jobs', 'id');
BEGIN
  -- Keys in one order, so that two callers with the same keys queue up instead of deadlocking.
  FOR place IN SELECT given.place FROM unnest(p_wkeys) WITH ORDINALITY AS given (key, place)
               ORDER BY given.key NULLS LAST, given.place LOOP
    LOOP
      INSERT INTO /* schema */workflows (id, name, key, definition_hash, steps, unsettled, finished_at, outcome, deadline_at)
      SELECT p_wids[place], p_wnames[place], p_wkeys[place], p_whashes[place], p_wsteps[place], p_wsteps[place],
             CASE WHEN p_wsteps[place] = 0 THEN now() END, CASE WHEN p_wsteps[place] = 0 THEN 'completed' END,
             coalesce(p_wdeadline_ats[place], now() + make_interval(secs => p_wdeadline_ins[place]))
      -- An empty one is finished at once and conflicts with nothing in the index of live keys; it must not pass one by.
      WHERE p_wsteps[place] > 0 OR NOT EXISTS (
        SELECT FROM /* schema */workflows AS other WHERE other.key = p_wkeys[place] AND other.finished_at IS NULL)
      ON CONFLICT (key) WHERE finished_at IS NULL DO NOTHING;
      EXIT WHEN FOUND;
      SELECT workflow.id, workflow.definition_hash INTO live
      FROM /* schema */workflows AS workflow WHERE workflow.key = p_wkeys[place] AND workflow.finished_at IS NULL;
      -- It may have finished between the two statements; then the key is free again.
      CONTINUE WHEN NOT FOUND;
      IF live.definition_hash <> p_whashes[place] THEN
        RAISE EXCEPTION 'key % belongs to the live workflow %, which has another definition', p_wkeys[place], live.id
          USING ERRCODE = 'BT001', DETAIL = live.id::text, COLUMN = p_wkeys[place];
      END IF;
      ids[place] := live.id;
      fresh[place] := false;
      EXIT;
    END LOOP;
  END LOOP;

  IF 0 = ANY(p_wsteps) THEN
    PERFORM /* schema */baton_complete(ARRAY(
      SELECT empty.id FROM unnest(ids, fresh, p_wsteps) AS empty (id, fresh, steps) WHERE empty.fresh AND empty.steps = 0));
  END IF;

  SELECT array_agg(nextval(step_sequence)), array_agg(nextval(job_sequence))
  INTO step_ids, job_ids FROM generate_subscripts(p_snames, 1);

  WITH jobs AS (
    INSERT INTO /* schema */oban_jobs (id, state, queue, worker, args, meta, tags, max_attempts, priority, scheduled_at)
    OVERRIDING SYSTEM VALUE
    SELECT step.job_id,
           CASE WHEN step.waiting_on > 0 THEN 'suspended' WHEN step.scheduled_at > now() THEN 'scheduled'
                ELSE 'available' END::/* schema */oban_job_state,
           step.queue, step.worker, step.args::jsonb,
           step.meta::jsonb || jsonb_build_object('workflow_id', ids[step.workflow], 'workflow_name', step.name,
                                                  'workflow_label', p_wnames[step.workflow]),
           step.tags::text[], step.max_attempts, step.priority,
           timezone('UTC', coalesce(step.scheduled_at, now()))
    FROM unnest(job_ids, p_sworkflow, p_snames, p_sworkers, p_squeues, p_sargs, p_smetas, p_stags, p_smax_attempts,
                p_spriorities, p_sscheduled_ats, p_swaiting_on)
         AS step (job_id, workflow, name, worker, queue, args, meta, tags, max_attempts, priority, scheduled_at, waiting_on)
    WHERE fresh[step.workflow]
    RETURNING queue, state
  )
  SELECT coalesce(array_agg(DISTINCT queue) FILTER (WHERE state = 'available'), '{}') INTO queues FROM jobs;

  INSERT INTO /* schema */workflow_nodes
    (id, workflow_id, position, name, function, job_id, deps, ignore_cancelled, ignore_discarded, state, waiting_on, runs_on, hooked,
     debug, budgeted)
  OVERRIDING SYSTEM VALUE
  SELECT step.id, ids[step.workflow], step.position, step.name, step.function, step.job_id, step.deps::text[],
         step.ignore_cancelled, step.ignore_discarded,
         CASE WHEN step.waiting_on > 0 THEN 'held' ELSE 'released' END, step.waiting_on,
         coalesce(step.runs_on, 'success'), coalesce(step.hooked, false), coalesce(step.debug, false),
         step.workflow = ANY(p_bworkflow)
  FROM unnest(step_ids, job_ids, p_sworkflow, p_snames, p_sfunctions, p_sdeps, p_signore_cancelled, p_signore_discarded,
              p_swaiting_on, p_sruns_on, p_shooked, p_sdebug) WITH ORDINALITY
       AS step (id, job_id, workflow, name, function, deps, ignore_cancelled, ignore_discarded, waiting_on, runs_on, hooked, debug,
             position)
  WHERE fresh[step.workflow];

  INSERT INTO /* schema */workflow_edges (dependency_id, dependent_id)
  SELECT step_ids[edge.dependency], step_ids[edge.dependent]
  FROM unnest(p_edependency, p_edependent) AS edge (dependency, dependent)
  WHERE fresh[p_sworkflow[edge.dependent]];

  IF p_bworkflow <> '{}' THEN
    PERFORM /* schema */baton_fund(array_agg(ids[budget.workflow]), array_agg(budget.key), array_agg(budget.usd), array_agg(budget.tokens),
                                   array_agg(budget.calls), array_agg(budget.on_exhausted), array_agg(budget.unpriced))
    FROM unnest(p_bworkflow, p_bkeys, p_busd, p_btokens, p_bcalls, p_bon_exhausted, p_bunpriced)
         AS budget (workflow, key, usd, tokens, calls, on_exhausted, unpriced)
    WHERE fresh[budget.workflow] HAVING count(*) > 0;
  END IF;

  PERFORM /* schema */baton_wake(queues, p_local, p_origin);
  IF EXISTS (SELECT FROM /* schema */workflow_subscribers AS subscriber WHERE subscriber.topic = 'workflow:all') THEN
    PERFORM /* schema */baton_announce_runs(
      ARRAY(SELECT given.id FROM unnest(ids, fresh) AS given (id, fresh) WHERE given.fresh), false);
  END IF;
  RETURN QUERY SELECT * FROM unnest(ids, fresh);
END
$$;
