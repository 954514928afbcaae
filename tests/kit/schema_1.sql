CREATE TABLE IF NOT EXISTS "public".workflow_migrations (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());
-- 0001_workflows: the tables that make jobs into workflows.
-- No foreign keys. One to oban_jobs would let Oban's TRUNCATE ... CASCADE take our rows along, and ones among our own
-- tables would double the cost of an insert; rows are written by one function and deleted by whole workflows.

CREATE TABLE "public".workflows (
  id uuid PRIMARY KEY,
  name text NOT NULL,
  key text,
  definition_hash text NOT NULL,
  generation integer NOT NULL DEFAULT 1,
  steps integer NOT NULL CHECK (steps >= 0),
  unsettled integer NOT NULL CHECK (unsettled BETWEEN 0 AND steps),
  failed integer NOT NULL DEFAULT 0 CHECK (failed BETWEEN 0 AND steps),
  excused integer NOT NULL DEFAULT 0 CHECK (excused BETWEEN 0 AND failed),
  outcome text CHECK (outcome IN ('completed', 'failed')),
  inserted_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  CONSTRAINT workflow_finishes_with_its_last_step
    CHECK ((unsettled = 0) = (finished_at IS NOT NULL) AND (unsettled = 0) = (outcome IS NOT NULL)),
  CONSTRAINT workflow_outcome_follows_its_steps
    CHECK (outcome IS NULL OR (outcome = 'failed') = (failed > excused))
) WITH (fillfactor = 50);

COMMENT ON COLUMN "public".workflows.failed IS 'steps that settled cancelled or discarded';
COMMENT ON COLUMN "public".workflows.excused IS 'of the failed, those that every dependent was told to ignore';

-- A key is unique among live workflows; the index lists those without a key as well. The counters are in no index, so counting down stays a HOT update.
CREATE UNIQUE INDEX workflows_live_key ON "public".workflows (key) WHERE finished_at IS NULL;

CREATE TABLE "public".workflow_nodes (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  workflow_id uuid NOT NULL,
  position integer NOT NULL,
  name text NOT NULL,
  function text NOT NULL,
  job_id bigint NOT NULL,
  deps text[] NOT NULL,
  ignore_cancelled boolean NOT NULL,
  ignore_discarded boolean NOT NULL,
  state text NOT NULL CHECK (state IN ('held', 'released', 'completed', 'cancelled', 'discarded')),
  waiting_on integer NOT NULL CHECK (waiting_on >= 0),
  owed boolean NOT NULL DEFAULT false,
  doomed boolean NOT NULL DEFAULT false,
  reruns integer NOT NULL DEFAULT 0,
  attempt integer,
  result jsonb,
  error text,
  started_at timestamptz,
  settled_at timestamptz,
  CONSTRAINT held_means_waiting CHECK ((state = 'held') = (waiting_on > 0)),
  CONSTRAINT settled_has_a_time CHECK ((state IN ('completed', 'cancelled', 'discarded')) = (settled_at IS NOT NULL)),
  CONSTRAINT completed_has_a_result CHECK ((state = 'completed') = (result IS NOT NULL)),
  CONSTRAINT doomed_is_cancelled CHECK (NOT doomed OR state = 'cancelled'),
  CONSTRAINT held_owes_nothing CHECK (NOT owed OR state <> 'held')
) WITH (fillfactor = 60);

COMMENT ON COLUMN "public".workflow_nodes.state IS 'held, released, or as settled; a released step''s live state is its job''s';
COMMENT ON COLUMN "public".workflow_nodes.owed IS 'the job row was locked when it had to follow this step; the sweep makes it follow';

-- `state` is in no index and no predicate, so releasing and settling stay HOT updates.
CREATE UNIQUE INDEX workflow_nodes_job ON "public".workflow_nodes (job_id);
CREATE UNIQUE INDEX workflow_nodes_name ON "public".workflow_nodes (workflow_id, name);
CREATE INDEX workflow_nodes_owed ON "public".workflow_nodes (id) WHERE owed;

CREATE TABLE "public".workflow_edges (
  dependency_id bigint NOT NULL,
  dependent_id bigint NOT NULL CHECK (dependent_id <> dependency_id),
  PRIMARY KEY (dependency_id, dependent_id)
);

CREATE INDEX workflow_edges_dependent ON "public".workflow_edges (dependent_id, dependency_id);

CREATE TABLE "public".workflow_completions (
  workflow_id uuid NOT NULL,
  generation integer NOT NULL,
  event_id uuid NOT NULL DEFAULT gen_random_uuid(),
  outcome text NOT NULL,
  failed_steps text[] NOT NULL,
  finished_at timestamptz NOT NULL,
  PRIMARY KEY (workflow_id, generation)
);

CREATE TABLE "public".workflow_checkpoints (
  step_id bigint NOT NULL,
  key text NOT NULL,
  value jsonb NOT NULL,
  attempt integer NOT NULL,
  inserted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (step_id, key)
);

CREATE TABLE "public".workflow_repairs (
  step_id bigint PRIMARY KEY,
  state text NOT NULL CHECK (state IN ('completed', 'cancelled', 'discarded')),
  sqlstate text NOT NULL,
  error text NOT NULL,
  inserted_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE "public".workflow_subscribers (
  topic text NOT NULL,
  subscriber uuid NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (topic, subscriber)
);
INSERT INTO "public".workflow_migrations (version, name) VALUES (1, 'workflows') ON CONFLICT DO NOTHING;
-- drop_functions: make room for this library's functions. Those behind triggers stay, and are replaced.
DO $$
DECLARE
  ours regprocedure;
BEGIN
  FOR ours IN
    SELECT routine.oid::regprocedure FROM pg_proc AS routine
    WHERE routine.pronamespace = 'public'::regnamespace AND routine.proname IN ('baton_ack', 'baton_cancel_jobs', 'baton_claim', 'baton_doom', 'baton_finish', 'baton_follow', 'baton_follow_one', 'baton_give_back', 'baton_insert', 'baton_on_jobs_deleted', 'baton_on_jobs_truncated', 'baton_on_jobs_updated', 'baton_owe', 'baton_reclaim', 'baton_reconcile', 'baton_release', 'baton_release_jobs', 'baton_rescue', 'baton_settle', 'baton_store', 'baton_sweep', 'baton_take_jobs', 'baton_wake')
      AND routine.prorettype <> 'trigger'::regtype
  LOOP
    EXECUTE format('DROP FUNCTION %s', ours);
  END LOOP;
END
$$;

-- ack: write the outcomes of a batch of attempts, settle their steps, and claim what the queue may run next, in one commit.
-- An outcome counts only for the attempt that still holds its job (state and attempted_at), so a late one changes nothing.
-- p_outcomes: JSON array of {id, attempted_at, state, attempt_change, delay, error, meta, reason}; empty, this only claims.
-- `state::text` here and elsewhere keeps the planner from looking a job up by its state, of which there may be millions, when
-- its id is known. p_results: JSON text of each one's result, in the same order. p_demand 0 claims nothing.
-- Returns ids acked; queues to wake here; whether a job is owed; claimed jobs as `claim` gives them.
CREATE OR REPLACE FUNCTION "public".baton_ack(
  p_outcomes jsonb, p_results text[],
  p_queue text, p_demand integer, p_node text, p_producer uuid, p_local uuid[], p_origin text,
  OUT acked bigint[], OUT queues text[], OUT owed boolean, OUT claimed text[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  steps bigint[];
  states text[];
  results text[];
  reasons text[];
  rerun bigint[];
BEGIN
  acked := '{}';
  queues := '{}';
  owed := false;

  IF p_results <> '{}' THEN
    -- Here everything propagates: the caller retries it, or finds the one outcome that cannot be written.
    PERFORM set_config('baton.engine', 'on', true);

    -- LIMIT takes nothing away. It makes the planner expect few outcomes, so that it looks up each one's job instead of
    -- reading all jobs, which on small tables seems cheaper than the hundred look-ups it expects otherwise.
    SELECT coalesce(array_agg(fenced.id), '{}') INTO acked FROM (
      SELECT job.id
      FROM (SELECT id, attempted_at FROM jsonb_to_recordset(p_outcomes) AS given (id bigint, attempted_at timestamp)
            LIMIT cardinality(p_results)) AS attempt
      JOIN "public".oban_jobs AS job ON job.id = attempt.id
      WHERE job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
      ORDER BY job.id FOR UPDATE OF job
    ) AS fenced;

    SELECT array_agg(step.id) FILTER (WHERE step.state IN ('held', 'released')),
           array_agg(outcome.state) FILTER (WHERE step.state IN ('held', 'released')),
           array_agg(outcome.result) FILTER (WHERE step.state IN ('held', 'released')),
           array_agg(outcome.reason) FILTER (WHERE step.state IN ('held', 'released')),
           array_agg(step.id) FILTER (WHERE step.state NOT IN ('held', 'released'))
    INTO steps, states, results, reasons, rerun
    FROM ROWS FROM (jsonb_to_recordset(p_outcomes) AS (id bigint, attempted_at timestamp, state text, reason text),
                    unnest(p_results)) AS outcome (id, attempted_at, state, reason, result)
    JOIN "public".oban_jobs AS job ON job.id = outcome.id
    JOIN "public".workflow_nodes AS step ON step.job_id = outcome.id
    WHERE job.state::text = 'executing' AND job.attempted_at = outcome.attempted_at
      AND outcome.state IN ('completed', 'cancelled', 'discarded');

    -- The steps first, then their jobs: the trigger on the job table then finds nothing left to do.
    IF steps IS NOT NULL THEN
      queues := "public".baton_settle(steps, states, results, reasons);
      owed := EXISTS (
        SELECT FROM "public".workflow_nodes AS owing WHERE owing.owed AND owing.workflow_id IN (
          SELECT step.workflow_id FROM "public".workflow_nodes AS step WHERE step.id = ANY(steps)));
    END IF;
    IF rerun IS NOT NULL THEN
      UPDATE "public".workflow_nodes AS step SET reruns = step.reruns + 1 WHERE step.id = ANY(rerun);
    END IF;

    UPDATE "public".oban_jobs AS job
    SET state = outcome.state::"public".oban_job_state,
        attempt = greatest(0, job.attempt + coalesce(outcome.attempt_change, 0)),
        scheduled_at = CASE WHEN outcome.delay IS NULL THEN job.scheduled_at
                            ELSE timezone('UTC', now()) + make_interval(secs => outcome.delay) END,
        completed_at = CASE WHEN outcome.state = 'completed' THEN timezone('UTC', now()) ELSE job.completed_at END,
        cancelled_at = CASE WHEN outcome.state = 'cancelled' THEN timezone('UTC', now()) ELSE job.cancelled_at END,
        discarded_at = CASE WHEN outcome.state = 'discarded' THEN timezone('UTC', now()) ELSE job.discarded_at END,
        errors = CASE WHEN outcome.error IS NULL THEN job.errors ELSE job.errors || outcome.error END,
        meta = CASE WHEN outcome.meta IS NULL THEN job.meta ELSE job.meta || outcome.meta END
    FROM (SELECT * FROM jsonb_to_recordset(p_outcomes) AS given (
            id bigint, attempted_at timestamp, state text, attempt_change integer, delay double precision, error jsonb,
            meta jsonb)
          LIMIT cardinality(p_results)) AS outcome
    WHERE job.id = outcome.id AND job.state::text = 'executing' AND job.attempted_at = outcome.attempted_at;

    PERFORM set_config('baton.engine', 'off', true);
  END IF;

  IF p_demand > 0 THEN
    claimed := "public".baton_claim(p_queue, p_demand, p_node, p_producer);
  END IF;
  PERFORM "public".baton_wake(queues, p_local, p_origin);
END
$$;

-- cancel_jobs: end the jobs of steps that were doomed. Takes ids of jobs that this transaction has locked.
CREATE OR REPLACE FUNCTION "public".baton_cancel_jobs(p_ids bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE "public".oban_jobs AS job
  SET state = 'cancelled', cancelled_at = timezone('UTC', now())
  WHERE job.id = ANY(p_ids) AND job.state::text IN ('suspended', 'scheduled', 'available', 'retryable');
END
$$;

-- claim: take up to p_demand available jobs of a queue, in Oban's order, each with what its step needs to start.
-- Returns the JSON text of each job, its id and attempted_at first; those of a step carry it under "step". Results of
-- dependencies come along while they are small and asked for; others the step fetches itself. An exhausted job is passed over
-- instead of stopping the queue at its head.
CREATE OR REPLACE FUNCTION "public".baton_claim(p_queue text, p_demand integer, p_node text, p_producer uuid)
RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  jobs text[];
BEGIN
  WITH locked AS (
    SELECT job.id FROM "public".oban_jobs AS job
    WHERE job.state = 'available' AND job.queue = p_queue AND job.attempt < job.max_attempts
    ORDER BY job.priority, job.scheduled_at, job.id LIMIT p_demand FOR UPDATE SKIP LOCKED
  ), claimed AS (
    UPDATE "public".oban_jobs AS job
    SET state = 'executing', attempt = job.attempt + 1, attempted_at = timezone('UTC', clock_timestamp()),
        attempted_by = ARRAY[p_node, p_producer::text]
    FROM locked WHERE job.id = locked.id
    RETURNING job.*
  )
  SELECT array_agg(json_build_object(
      'id', job.id, 'attempted_at', job.attempted_at, 'state', job.state, 'queue', job.queue, 'worker', job.worker, 'attempt', job.attempt,
      'max_attempts', job.max_attempts, 'priority', job.priority, 'args', job.args, 'meta', job.meta,
      'errors', job.errors, 'tags', job.tags, 'attempted_by', job.attempted_by, 'inserted_at', job.inserted_at,
      'scheduled_at', job.scheduled_at, 'cancelled_at', job.cancelled_at,
      'completed_at', job.completed_at, 'discarded_at', job.discarded_at,
      'step', CASE WHEN step.id IS NOT NULL THEN json_build_object(
        'id', step.id, 'workflow_id', step.workflow_id, 'name', step.name, 'state', step.state,
        'deps', step.deps, 'doomed', step.doomed,
        'stored', (SELECT checkpoint.value FROM "public".workflow_checkpoints AS checkpoint
                   WHERE checkpoint.step_id = step.id AND checkpoint.key = ''),
        'inputs', CASE WHEN cardinality(step.deps) BETWEEN 1 AND 64
                            AND (job.worker <> 'baton.StepWorker' OR job.args ? 'refs') THEN
          CASE WHEN (SELECT coalesce(sum(pg_column_size(dependency.result)), 0) FROM "public".workflow_edges AS edge
                     JOIN "public".workflow_nodes AS dependency ON dependency.id = edge.dependency_id
                     WHERE edge.dependent_id = step.id) <= 65536
               THEN (SELECT coalesce(json_object_agg(dependency.name, dependency.result), '{}')
                     FROM "public".workflow_edges AS edge
                     JOIN "public".workflow_nodes AS dependency ON dependency.id = edge.dependency_id
                     WHERE edge.dependent_id = step.id AND dependency.result IS NOT NULL) END END
      ) END
    )::text ORDER BY job.priority, job.scheduled_at, job.id)
  INTO jobs
  FROM claimed AS job LEFT JOIN "public".workflow_nodes AS step ON step.job_id = job.id;
  RETURN jobs;
END
$$;

-- doom: cancel every held step that can no longer be satisfied, to any depth, with its job.
-- p_ids: steps that settled cancelled or discarded in this transaction, their workflows locked. Returns the doomed steps' ids.
-- A loop, a level a turn: a recursive statement would see the rows as they were before it began.
CREATE OR REPLACE FUNCTION "public".baton_doom(p_ids bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  level bigint[] := p_ids;
  reasons text[];
  jobs bigint[];
  ours bigint[];
  doomed bigint[] := '{}';
BEGIN
  LOOP
    SELECT array_agg(hit.id), array_agg(hit.job_id), array_agg(hit.reason) INTO level, jobs, reasons
    FROM (
      SELECT DISTINCT ON (step.id) step.id, step.job_id,
             'its dependency ' || quote_literal(cause.name) || ' was ' || cause.state AS reason
      FROM "public".workflow_edges AS edge
      -- OFFSET keeps these look-ups; see release.
      CROSS JOIN LATERAL (
        SELECT node.name, node.state, node.position FROM "public".workflow_nodes AS node
        WHERE node.id = edge.dependency_id OFFSET 0
      ) AS cause
      CROSS JOIN LATERAL (
        SELECT node.id, node.job_id, node.state, node.ignore_cancelled, node.ignore_discarded
        FROM "public".workflow_nodes AS node WHERE node.id = edge.dependent_id OFFSET 0
      ) AS step
      WHERE edge.dependency_id = ANY(level)
        AND step.state = 'held'
        AND NOT CASE cause.state WHEN 'cancelled' THEN step.ignore_cancelled
                                 WHEN 'discarded' THEN step.ignore_discarded
                                 ELSE true END
      ORDER BY step.id, cause.position
    ) AS hit;
    EXIT WHEN level IS NULL;

    ours := "public".baton_take_jobs(jobs);

    UPDATE "public".workflow_nodes AS step
    SET state = 'cancelled', doomed = true, waiting_on = 0, error = hit.reason, settled_at = clock_timestamp()
    FROM unnest(level, reasons) AS hit (id, reason)
    WHERE step.id = hit.id AND step.state = 'held';

    IF cardinality(ours) < cardinality(jobs) THEN
      PERFORM "public".baton_owe(jobs, ours);
    END IF;
    PERFORM "public".baton_cancel_jobs(ours);
    doomed := doomed || level;
  END LOOP;
  RETURN doomed;
END
$$;

-- finish: count settled steps off their workflows; a workflow left with none is finished, with one completion row.
-- p_ids: steps that settled in this transaction, their workflows locked. Subscribers with a live lease are notified of ids
-- alone: on 'workflow:<id>' of every settle, on 'finished:<id>' of the end.
CREATE OR REPLACE FUNCTION "public".baton_finish(p_ids bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  touched uuid[];
  finished uuid[];
BEGIN
  WITH settled AS (
    SELECT step.workflow_id,
           step.state <> 'completed' AS failed,
           step.state <> 'completed' AND (
             -- Excused: somebody waits for it, and everybody who does was told to ignore just this.
             SELECT bool_and(CASE step.state WHEN 'cancelled' THEN dependent.ignore_cancelled
                                             ELSE dependent.ignore_discarded END)
             FROM "public".workflow_edges AS edge
             JOIN "public".workflow_nodes AS dependent ON dependent.id = edge.dependent_id
             WHERE edge.dependency_id = step.id
           ) IS TRUE AS excused
    FROM "public".workflow_nodes AS step WHERE step.id = ANY(p_ids)
  ), counted AS (
    SELECT workflow_id, count(*)::integer AS settled,
           count(*) FILTER (WHERE failed)::integer AS failed, count(*) FILTER (WHERE excused)::integer AS excused
    FROM settled GROUP BY workflow_id
  ), updated AS (
    UPDATE "public".workflows AS workflow
    SET unsettled = workflow.unsettled - counted.settled,
        failed = workflow.failed + counted.failed,
        excused = workflow.excused + counted.excused,
        finished_at = CASE WHEN workflow.unsettled = counted.settled THEN clock_timestamp() END,
        outcome = CASE WHEN workflow.unsettled > counted.settled THEN NULL
                       WHEN workflow.failed + counted.failed > workflow.excused + counted.excused THEN 'failed'
                       ELSE 'completed' END
    FROM counted WHERE workflow.id = counted.workflow_id
    RETURNING workflow.id, workflow.finished_at
  )
  SELECT array_agg(id), array_agg(id) FILTER (WHERE finished_at IS NOT NULL) INTO touched, finished FROM updated;

  IF finished IS NOT NULL THEN
    INSERT INTO "public".workflow_completions (workflow_id, generation, outcome, failed_steps, finished_at)
    SELECT workflow.id, workflow.generation, workflow.outcome,
           CASE WHEN workflow.failed = 0 THEN '{}' ELSE ARRAY(
             SELECT step.name FROM "public".workflow_nodes AS step
             WHERE step.workflow_id = workflow.id AND step.state IN ('cancelled', 'discarded') ORDER BY step.position
           ) END,
           workflow.finished_at
    FROM "public".workflows AS workflow WHERE workflow.id = ANY(finished);
  END IF;

  IF EXISTS (SELECT FROM "public".workflow_subscribers) THEN
    PERFORM pg_notify('public.oban_workflow', json_build_object('id', topic.workflow_id)::text)
    FROM (
      SELECT id AS workflow_id, 'workflow:' || id AS name FROM unnest(touched) AS id
      UNION SELECT id, 'finished:' || id FROM unnest(finished) AS id
    ) AS topic
    WHERE EXISTS (
      SELECT FROM "public".workflow_subscribers AS subscriber
      WHERE subscriber.topic = topic.name AND subscriber.expires_at > clock_timestamp()
    );
  END IF;
END
$$;

-- follow: make steps follow what somebody did to their jobs: Oban's cancel, retry, rescue, delete, another node, a DBA.
-- p_ids: jobs whose rows this transaction has written and that no longer agree with their steps. Returns nothing and, for
-- plain statements, raises nothing that would make them fail on our account, except what a caller is expected to retry.
CREATE OR REPLACE FUNCTION "public".baton_follow(p_steps bigint[], p_states text[], p_reason text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  queues text[] := '{}';
  one record;
BEGIN
  BEGIN
    queues := "public".baton_settle(
      p_steps, p_states, array_fill(NULL::text, ARRAY[cardinality(p_steps)]),
      array_fill(p_reason, ARRAY[cardinality(p_steps)]));
  EXCEPTION WHEN OTHERS THEN
    -- 40 serialization and deadlock, 53 resources, 55 locks, 57 shutdown: nobody's fault, the caller must see them.
    IF current_setting('baton.engine', true) = 'on' OR left(SQLSTATE, 2) IN ('40', '53', '55', '57') THEN
      RAISE;
    END IF;
    FOR one IN
      SELECT array_agg(step.id ORDER BY step.id) AS ids, array_agg(given.state ORDER BY step.id) AS states
      FROM unnest(p_steps, p_states) AS given (id, state)
      JOIN "public".workflow_nodes AS step ON step.id = given.id
      GROUP BY step.workflow_id ORDER BY step.workflow_id
    LOOP
      queues := queues || "public".baton_follow_one(one.ids, one.states, p_reason);
    END LOOP;
  END;
  PERFORM "public".baton_wake(queues, '{}', NULL);
END
$$;

-- follow_one: settle the steps of one workflow; what cannot be settled is written down for the sweep to repair.
CREATE OR REPLACE FUNCTION "public".baton_follow_one(p_steps bigint[], p_states text[], p_reason text)
RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN "public".baton_settle(
    p_steps, p_states, array_fill(NULL::text, ARRAY[cardinality(p_steps)]),
    array_fill(p_reason, ARRAY[cardinality(p_steps)]));
EXCEPTION WHEN OTHERS THEN
  IF left(SQLSTATE, 2) IN ('40', '53', '55', '57') THEN
    RAISE;
  END IF;
  INSERT INTO "public".workflow_repairs (step_id, state, sqlstate, error)
  SELECT given.id, given.state, SQLSTATE, SQLERRM FROM unnest(p_steps, p_states) AS given (id, state)
  ON CONFLICT (step_id) DO UPDATE SET state = excluded.state, sqlstate = excluded.sqlstate, error = excluded.error;
  RETURN '{}';
END
$$;

-- give_back: return claimed jobs that never started, with their attempt, to their queue.
-- Fenced like an ack. Returns how many went back.
CREATE OR REPLACE FUNCTION "public".baton_give_back(p_ids bigint[], p_attempted_ats timestamp[]) RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  returned bigint;
BEGIN
  WITH fenced AS (
    SELECT job.id FROM unnest(p_ids, p_attempted_ats) AS attempt (id, attempted_at)
    JOIN "public".oban_jobs AS job ON job.id = attempt.id
    WHERE job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
    ORDER BY job.id FOR UPDATE OF job
  )
  UPDATE "public".oban_jobs AS job SET state = 'available', attempt = job.attempt - 1
  FROM fenced WHERE job.id = fenced.id;
  GET DIAGNOSTICS returned = ROW_COUNT;
  RETURN returned;
END
$$;

-- insert: write whole workflows, all or none, in the caller's transaction.
-- p_w*: one element per workflow. p_s*: one per step, p_sworkflow giving its workflow's place in p_wids, from 1.
-- p_edependency, p_edependent: places in the steps' arrays, from 1. Returns a row per workflow, in the order given: its id, or
-- that of the live workflow which already has its key. A live one with another definition is an error, BT001: its id is the
-- detail, the key the column, and nothing is written.
CREATE OR REPLACE FUNCTION "public".baton_insert(
  p_wids uuid[], p_wnames text[], p_wkeys text[], p_whashes text[], p_wsteps integer[],
  p_sworkflow integer[], p_snames text[], p_sfunctions text[], p_sworkers text[], p_squeues text[], p_sargs text[], p_smetas text[],
  p_stags text[], p_smax_attempts integer[], p_spriorities integer[], p_sscheduled_ats timestamptz[], p_sdeps text[],
  p_signore_cancelled boolean[], p_signore_discarded boolean[], p_swaiting_on integer[],
  p_edependency integer[], p_edependent integer[], p_local uuid[], p_origin text
) RETURNS TABLE (id uuid, inserted boolean)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  ids uuid[] := p_wids;
  fresh boolean[] := array_fill(true, ARRAY[cardinality(p_wids)]);
  live record;
  step_ids bigint[];
  job_ids bigint[];
  queues text[];
  place integer;
  step_sequence regclass := pg_get_serial_sequence('"public".workflow_nodes', 'id');
  job_sequence regclass := pg_get_serial_sequence('"public".oban_jobs', 'id');
BEGIN
  -- Keys in one order, so that two callers with the same keys queue up instead of deadlocking.
  FOR place IN SELECT given.place FROM unnest(p_wkeys) WITH ORDINALITY AS given (key, place)
               ORDER BY given.key NULLS LAST, given.place LOOP
    LOOP
      INSERT INTO "public".workflows (id, name, key, definition_hash, steps, unsettled, finished_at, outcome)
      SELECT p_wids[place], p_wnames[place], p_wkeys[place], p_whashes[place], p_wsteps[place], p_wsteps[place],
             CASE WHEN p_wsteps[place] = 0 THEN now() END, CASE WHEN p_wsteps[place] = 0 THEN 'completed' END
      -- An empty one is finished at once and conflicts with nothing in the index of live keys; it must not pass one by.
      WHERE p_wsteps[place] > 0 OR NOT EXISTS (
        SELECT FROM "public".workflows AS other WHERE other.key = p_wkeys[place] AND other.finished_at IS NULL)
      ON CONFLICT (key) WHERE finished_at IS NULL DO NOTHING;
      EXIT WHEN FOUND;
      SELECT workflow.id, workflow.definition_hash INTO live
      FROM "public".workflows AS workflow WHERE workflow.key = p_wkeys[place] AND workflow.finished_at IS NULL;
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

  INSERT INTO "public".workflow_completions (workflow_id, generation, outcome, failed_steps, finished_at)
  SELECT empty.id, 1, 'completed', '{}', now() FROM unnest(ids, fresh, p_wsteps) AS empty (id, fresh, steps)
  WHERE empty.fresh AND empty.steps = 0;

  SELECT array_agg(nextval(step_sequence)), array_agg(nextval(job_sequence))
  INTO step_ids, job_ids FROM generate_subscripts(p_snames, 1);

  WITH jobs AS (
    INSERT INTO "public".oban_jobs (id, state, queue, worker, args, meta, tags, max_attempts, priority, scheduled_at)
    OVERRIDING SYSTEM VALUE
    SELECT step.job_id,
           CASE WHEN step.waiting_on > 0 THEN 'suspended' WHEN step.scheduled_at > now() THEN 'scheduled'
                ELSE 'available' END::"public".oban_job_state,
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

  INSERT INTO "public".workflow_nodes
    (id, workflow_id, position, name, function, job_id, deps, ignore_cancelled, ignore_discarded, state, waiting_on)
  OVERRIDING SYSTEM VALUE
  SELECT step.id, ids[step.workflow], step.position, step.name, step.function, step.job_id, step.deps::text[],
         step.ignore_cancelled, step.ignore_discarded,
         CASE WHEN step.waiting_on > 0 THEN 'held' ELSE 'released' END, step.waiting_on
  FROM unnest(step_ids, job_ids, p_sworkflow, p_snames, p_sfunctions, p_sdeps, p_signore_cancelled, p_signore_discarded, p_swaiting_on)
       WITH ORDINALITY
       AS step (id, job_id, workflow, name, function, deps, ignore_cancelled, ignore_discarded, waiting_on, position)
  WHERE fresh[step.workflow];

  INSERT INTO "public".workflow_edges (dependency_id, dependent_id)
  SELECT step_ids[edge.dependency], step_ids[edge.dependent]
  FROM unnest(p_edependency, p_edependent) AS edge (dependency, dependent)
  WHERE fresh[p_sworkflow[edge.dependent]];

  PERFORM "public".baton_wake(queues, p_local, p_origin);
  RETURN QUERY SELECT * FROM unnest(ids, fresh);
END
$$;

-- on_jobs_deleted: a job that is deleted before its step settled takes the step with it, as cancelled.
CREATE OR REPLACE FUNCTION "public".baton_on_jobs_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  orphans bigint[];
BEGIN
  SELECT array_agg(step.id) INTO orphans
  FROM changed AS job JOIN "public".workflow_nodes AS step ON step.job_id = job.id
  WHERE step.state IN ('held', 'released');
  IF orphans IS NOT NULL THEN
    PERFORM "public".baton_follow(orphans, array_fill('cancelled'::text, ARRAY[cardinality(orphans)]),
                                     'its job was deleted');
  END IF;
  RETURN NULL;
END
$$;

-- on_jobs_truncated: as on_jobs_deleted, for all jobs at once. Their ids may be given out again, so no step keeps one.
CREATE OR REPLACE FUNCTION "public".baton_on_jobs_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  orphans bigint[];
BEGIN
  SELECT array_agg(step.id) INTO orphans FROM "public".workflow_nodes AS step WHERE step.state IN ('held', 'released');
  IF orphans IS NOT NULL THEN
    PERFORM "public".baton_follow(orphans, array_fill('cancelled'::text, ARRAY[cardinality(orphans)]),
                                     'its job was deleted');
  END IF;
  UPDATE "public".workflow_nodes AS step SET job_id = -step.id WHERE step.job_id > 0;
  RETURN NULL;
END
$$;

-- on_jobs_updated: after every UPDATE of oban_jobs, whoever made it, steps and jobs agree again.
-- It compares states instead of watching transitions: plain jobs have no step, and our own statements move the step first, so
-- both end after one index look-up per row. Recursion is bounded by the same comparison, never by depth: a cancel that comes
-- from a user's own trigger arrives here at depth 2 and counts like any other.
CREATE OR REPLACE FUNCTION "public".baton_on_jobs_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  settled bigint[];
  states text[];
  put_back bigint[];
  dead bigint[];
BEGIN
  SELECT array_agg(step.id) FILTER (WHERE step.state IN ('held', 'released')),
         array_agg(job.state::text) FILTER (WHERE step.state IN ('held', 'released')),
         array_agg(job.id) FILTER (WHERE step.state = 'held' AND job.state NOT IN ('completed', 'cancelled', 'discarded')),
         array_agg(job.id) FILTER (WHERE step.doomed)
  INTO settled, states, put_back, dead
  FROM changed AS job JOIN "public".workflow_nodes AS step ON step.job_id = job.id
  WHERE CASE WHEN job.state IN ('completed', 'cancelled', 'discarded') THEN step.state IN ('held', 'released')
             WHEN job.state = 'suspended' THEN false
             ELSE step.state = 'held' OR step.doomed END;

  IF settled IS NULL AND dead IS NULL THEN
    RETURN NULL;
  END IF;

  -- A held step's job that somebody retried or staged waits on; a doomed one stays cancelled.
  IF put_back IS NOT NULL THEN
    UPDATE "public".oban_jobs AS job
    SET state = 'suspended', attempt = CASE job.state WHEN 'executing' THEN greatest(0, job.attempt - 1) ELSE job.attempt END
    WHERE job.id = ANY(put_back) AND job.state::text IN ('available', 'scheduled', 'retryable', 'executing');
  END IF;
  IF dead IS NOT NULL THEN
    PERFORM "public".baton_cancel_jobs(dead);
  END IF;

  SELECT array_agg(ended.id), array_agg(ended.state) INTO settled, states
  FROM unnest(settled, states) AS ended (id, state) WHERE ended.state IN ('completed', 'cancelled', 'discarded');
  IF settled IS NOT NULL THEN
    PERFORM "public".baton_follow(settled, states, NULL);
  END IF;
  RETURN NULL;
END
$$;

-- owe: mark the steps whose jobs could not be taken, so that the sweep makes those jobs follow.
-- p_wanted: jobs that should have been locked. p_taken: those that were.
CREATE OR REPLACE FUNCTION "public".baton_owe(p_wanted bigint[], p_taken bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE "public".workflow_nodes AS step SET owed = true
  WHERE step.job_id = ANY(ARRAY(SELECT unnest(p_wanted) EXCEPT SELECT unnest(p_taken)));
END
$$;

-- reclaim: return jobs to their queue that a producer claimed without learning of it: the commit came through, its answer did not.
-- p_known: jobs the producer does know of. Returns how many went back.
CREATE OR REPLACE FUNCTION "public".baton_reclaim(p_queue text, p_producer uuid, p_known bigint[]) RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  returned bigint;
BEGIN
  WITH lost AS (
    SELECT job.id FROM "public".oban_jobs AS job
    WHERE job.state = 'executing' AND job.queue = p_queue AND job.attempted_by[2] = p_producer::text
      AND job.id <> ALL(p_known)
    ORDER BY job.id FOR UPDATE
  )
  UPDATE "public".oban_jobs AS job SET state = 'available', attempt = job.attempt - 1
  FROM lost WHERE job.id = lost.id;
  GET DIAGNOSTICS returned = ROW_COUNT;
  RETURN returned;
END
$$;

-- reconcile: find live steps that no longer agree with their jobs, because no trigger was looking when those changed, and make
-- them follow: an update that changes nothing lets the trigger compare again. Work is that of the live workflows' unsettled
-- steps. Returns how many were found; in a healthy system, none.
CREATE OR REPLACE FUNCTION "public".baton_reconcile() RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  jobs bigint[];
  late bigint[];
  gone bigint[];
BEGIN
  SELECT array_agg(step.job_id) FILTER (WHERE job.id IS NOT NULL AND job.state <> 'suspended'),
         array_agg(step.id) FILTER (WHERE job.state = 'suspended'),
         array_agg(step.id) FILTER (WHERE job.id IS NULL)
  INTO jobs, late, gone
  FROM "public".workflows AS workflow
  JOIN "public".workflow_nodes AS step ON step.workflow_id = workflow.id
  LEFT JOIN "public".oban_jobs AS job ON job.id = step.job_id
  WHERE workflow.finished_at IS NULL AND step.state IN ('held', 'released') AND NOT step.owed
    AND (job.id IS NULL OR job.state IN ('completed', 'cancelled', 'discarded')
         OR (step.state = 'held') <> (job.state = 'suspended'));

  IF jobs IS NOT NULL THEN
    jobs := "public".baton_take_jobs(jobs);
    UPDATE "public".oban_jobs AS job SET state = job.state WHERE job.id = ANY(jobs);
  END IF;
  IF gone IS NOT NULL THEN
    PERFORM "public".baton_follow(gone, array_fill('cancelled'::text, ARRAY[cardinality(gone)]), 'its job was deleted');
  END IF;
  IF late IS NOT NULL THEN
    UPDATE "public".workflow_nodes AS step SET owed = true WHERE step.id = ANY(late) AND step.state = 'released';
  END IF;
  RETURN coalesce(cardinality(jobs), 0) + coalesce(cardinality(gone), 0) + coalesce(cardinality(late), 0);
END
$$;

-- release: count settled steps off their dependents, and release those left waiting on nothing.
-- p_ids: steps that settled in this transaction, their workflows locked. Returns queues as release_jobs does.
-- Count down, do not look around: "no unsettled dependency is visible" loses the release when two settle at once.
CREATE OR REPLACE FUNCTION "public".baton_release(p_ids bigint[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  dependents bigint[];
  counts integer[];
  jobs bigint[];
  ours bigint[] := '{}';
BEGIN
  SELECT array_agg(step.id), array_agg(counted.settled),
         array_agg(step.job_id) FILTER (WHERE step.waiting_on = counted.settled)
  INTO dependents, counts, jobs
  FROM (
    SELECT edge.dependent_id AS id, count(*)::integer AS settled
    FROM "public".workflow_edges AS edge WHERE edge.dependency_id = ANY(p_ids) GROUP BY edge.dependent_id
  ) AS counted
  -- OFFSET keeps this a look-up for each of them. While the table is small, reading it all seems cheaper, and the plan stays.
  CROSS JOIN LATERAL (
    SELECT node.id, node.job_id, node.waiting_on, node.state FROM "public".workflow_nodes AS node
    WHERE node.id = counted.id OFFSET 0
  ) AS step
  WHERE step.state = 'held';

  IF dependents IS NULL THEN
    RETURN '{}';
  END IF;
  IF jobs IS NOT NULL THEN
    ours := "public".baton_take_jobs(jobs);
  END IF;

  UPDATE "public".workflow_nodes AS step
  SET waiting_on = step.waiting_on - counted.settled,
      state = CASE WHEN step.waiting_on = counted.settled THEN 'released' ELSE 'held' END
  FROM unnest(dependents, counts) AS counted (id, settled)
  WHERE step.id = counted.id AND step.state = 'held';

  IF cardinality(ours) < cardinality(jobs) THEN
    PERFORM "public".baton_owe(jobs, ours);
  END IF;
  IF ours = '{}' THEN
    RETURN '{}';
  END IF;
  RETURN "public".baton_release_jobs(ours);
END
$$;

-- release_jobs: let the jobs of released steps run, now or when they are scheduled for.
-- Takes ids of jobs that this transaction has locked. Returns the queues in which one became available, with repeats.
CREATE OR REPLACE FUNCTION "public".baton_release_jobs(p_ids bigint[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  queues text[];
BEGIN
  WITH released AS (
    UPDATE "public".oban_jobs AS job
    SET state = CASE WHEN job.scheduled_at > timezone('UTC', now()) THEN 'scheduled' ELSE 'available' END
                ::"public".oban_job_state
    WHERE job.id = ANY(p_ids) AND job.state::text = 'suspended'
    RETURNING job.queue, job.state
  )
  SELECT coalesce(array_agg(queue) FILTER (WHERE state = 'available'), '{}') INTO queues FROM released;
  RETURN queues;
END
$$;

-- rescue: run jobs again whose process is gone, not those that are slow: the producer that claimed them has no row any more.
-- Producers refresh their rows each 15 seconds, and the leader removes one that has not for a minute. The table is unlogged and
-- empty after a crash of the server, so absence means nothing in the server's first minute, nor in a claim's. A job with
-- no attempt left is discarded, with a reason. Returns how many were rescued or discarded.
CREATE OR REPLACE FUNCTION "public".baton_rescue(p_grace double precision) RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  rescued bigint;
BEGIN
  IF pg_postmaster_start_time() > clock_timestamp() - make_interval(secs => p_grace) THEN
    RETURN 0;
  END IF;
  WITH dead AS (
    SELECT job.id FROM "public".oban_jobs AS job
    WHERE (job.state = 'executing'
           AND job.attempted_at < timezone('UTC', now()) - make_interval(secs => p_grace)
           AND NOT EXISTS (SELECT FROM "public".oban_producers AS producer
                           WHERE producer.uuid::text = job.attempted_by[2]))
       OR (job.state = 'available' AND job.attempt >= job.max_attempts)
    ORDER BY job.id FOR UPDATE SKIP LOCKED
  )
  UPDATE "public".oban_jobs AS job
  SET state = CASE WHEN job.attempt >= job.max_attempts THEN 'discarded' ELSE 'available' END::"public".oban_job_state,
      discarded_at = CASE WHEN job.attempt >= job.max_attempts THEN timezone('UTC', now()) ELSE job.discarded_at END,
      errors = job.errors || jsonb_build_object(
        'attempt', job.attempt, 'at', to_jsonb(now()),
        'error', 'its process died while it ran, on node ' || coalesce(job.attempted_by[1], 'unknown')),
      meta = job.meta || jsonb_build_object('rescued', CASE jsonb_typeof(job.meta -> 'rescued')
        WHEN 'number' THEN (job.meta ->> 'rescued')::numeric + 1 ELSE 1 END)
  FROM dead WHERE job.id = dead.id;
  GET DIAGNOSTICS rescued = ROW_COUNT;
  RETURN rescued;
END
$$;

-- settle: steps reach completed, cancelled or discarded, once, and everything that follows from it happens here.
-- Every way for a step to end passes this function, in the transaction that ended it. A step that has settled already is
-- left alone, so a late or repeated call changes nothing. The caller has locked the job rows, ids ascending.
-- Arrays run in parallel, one element per step. A step completed without a result (NULL) was completed by somebody who knows
-- nothing of workflows: its result is null, marked as foreign. Returns the queues in which jobs became available, with repeats.
CREATE OR REPLACE FUNCTION "public".baton_settle(
  p_ids bigint[], p_states text[], p_results text[], p_errors text[]
) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  settled bigint[];
  unfortunate bigint[];
  queues text[];
BEGIN
  -- One lock order everywhere: two nodes settling into one fan-in queue up here, they do not deadlock.
  PERFORM 1 FROM "public".workflows AS workflow
  WHERE workflow.id IN (SELECT step.workflow_id FROM "public".workflow_nodes AS step WHERE step.id = ANY(p_ids))
  ORDER BY workflow.id FOR NO KEY UPDATE;

  WITH done AS (
    UPDATE "public".workflow_nodes AS step
    SET state = outcome.state,
        waiting_on = 0,
        result = CASE WHEN outcome.state <> 'completed' THEN NULL
                      WHEN outcome.result IS NULL THEN '{"value": null, "foreign": true}'
                      ELSE jsonb_build_object('value', outcome.result::jsonb) END,
        error = CASE WHEN outcome.state <> 'completed'
                     THEN coalesce(outcome.error, job.errors -> -1 ->> 'error', 'its job was ' || outcome.state) END,
        attempt = job.attempt,
        started_at = job.attempted_at AT TIME ZONE 'UTC',
        settled_at = clock_timestamp()
    FROM unnest(p_ids, p_states, p_results, p_errors) AS outcome (id, state, result, error)
    LEFT JOIN "public".workflow_nodes AS self ON self.id = outcome.id
    LEFT JOIN "public".oban_jobs AS job ON job.id = self.job_id
    WHERE step.id = outcome.id AND step.state IN ('held', 'released')
    RETURNING step.id, step.state
  )
  SELECT array_agg(id), array_agg(id) FILTER (WHERE state <> 'completed') INTO settled, unfortunate FROM done;

  IF settled IS NULL THEN
    RETURN '{}';
  END IF;
  IF unfortunate IS NOT NULL THEN
    settled := settled || "public".baton_doom(unfortunate);
  END IF;
  queues := "public".baton_release(settled);
  PERFORM "public".baton_finish(settled);
  RETURN queues;
END
$$;

-- store: keep a value for a step before its ack, in a commit of its own, only for the attempt that holds the job.
-- The first value under a key stays. Returns whether the attempt still holds its job.
CREATE OR REPLACE FUNCTION "public".baton_store(p_job_id bigint, p_attempted_at timestamp, p_key text, p_value text)
RETURNS boolean LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
  PERFORM 1 FROM "public".oban_jobs AS job
  WHERE job.id = p_job_id AND job.state::text = 'executing' AND job.attempted_at = p_attempted_at FOR SHARE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO "public".workflow_checkpoints (step_id, key, value, attempt)
  SELECT step.id, p_key, jsonb_build_object('value', p_value::jsonb), job.attempt
  FROM "public".workflow_nodes AS step JOIN "public".oban_jobs AS job ON job.id = step.job_id
  WHERE step.job_id = p_job_id
  ON CONFLICT (step_id, key) DO NOTHING;
  RETURN true;
END
$$;

-- sweep: make jobs follow their steps where the job row was locked at the time, and settle what could not be settled then.
-- Harmless at any moment, on any number of nodes at once, and empty-handed in a healthy system. Job rows are locked first,
-- workflows second, like everywhere. Returns the queues to wake here.
CREATE OR REPLACE FUNCTION "public".baton_sweep(p_local uuid[], p_origin text) RETURNS text[]
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  queues text[] := '{}';
  jobs bigint[];
  gone bigint[];
  step bigint[];
  one record;
  code text;
BEGIN
  SELECT array_agg(owing.id), array_agg(owing.job_id) INTO step, jobs
  FROM (SELECT node.id, node.job_id FROM "public".workflow_nodes AS node WHERE node.owed LIMIT 10000) AS owing;

  IF step IS NOT NULL THEN
    SELECT array_agg(node.id) INTO gone FROM unnest(step, jobs) AS node (id, job_id)
    WHERE NOT EXISTS (SELECT FROM "public".oban_jobs AS job WHERE job.id = node.job_id);
    jobs := "public".baton_take_jobs(jobs);

    PERFORM 1 FROM "public".workflows AS workflow WHERE workflow.id IN (
      SELECT node.workflow_id FROM "public".workflow_nodes AS node WHERE node.id = ANY(step)
    ) ORDER BY workflow.id FOR NO KEY UPDATE;

    queues := "public".baton_release_jobs(ARRAY(
      SELECT node.job_id FROM "public".workflow_nodes AS node
      WHERE node.job_id = ANY(jobs) AND node.owed AND node.state = 'released'));
    PERFORM "public".baton_cancel_jobs(ARRAY(
      SELECT node.job_id FROM "public".workflow_nodes AS node
      WHERE node.job_id = ANY(jobs) AND node.owed AND node.doomed));
    UPDATE "public".workflow_nodes AS node SET owed = false
    WHERE node.owed AND (node.job_id = ANY(jobs) OR node.id = ANY(gone));
  END IF;

  -- Repairs wait until nothing is owed: workflows are locked in one order, and these come one by one.
  FOR one IN
    SELECT repair.step_id, repair.state, repair.error FROM "public".workflow_repairs AS repair
    WHERE step IS NULL
    ORDER BY (SELECT node.workflow_id FROM "public".workflow_nodes AS node WHERE node.id = repair.step_id), repair.step_id
    LIMIT 100 FOR UPDATE SKIP LOCKED
  LOOP
    BEGIN
      queues := queues || "public".baton_settle(
        ARRAY[one.step_id], ARRAY[one.state], ARRAY[NULL::text], ARRAY[NULL::text]);
      DELETE FROM "public".workflow_repairs AS repair WHERE repair.step_id = one.step_id;
    EXCEPTION WHEN OTHERS THEN
      IF left(SQLSTATE, 2) IN ('40', '53', '55', '57') THEN
        RAISE;
      END IF;
      -- By way of a variable: the column is called sqlstate as well.
      code := SQLSTATE;
      UPDATE "public".workflow_repairs AS repair SET sqlstate = code, error = SQLERRM
      WHERE repair.step_id = one.step_id;
    END;
  END LOOP;

  PERFORM "public".baton_wake(queues, p_local, p_origin);
  RETURN queues;
END
$$;

-- take_jobs: lock those job rows that nobody else holds, and say which.
-- Whoever calls this holds workflow rows, and must never wait for a job row: Oban's own statements lock jobs first and come
-- to the workflow through the trigger. What is not taken is owed, and the sweep finds it.
CREATE OR REPLACE FUNCTION "public".baton_take_jobs(p_ids bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN ARRAY(
    SELECT job.id FROM "public".oban_jobs AS job WHERE job.id = ANY(p_ids) ORDER BY job.id FOR UPDATE SKIP LOCKED
  );
END
$$;

-- wake: tell other nodes, once per queue and transaction, that jobs became available; none if nobody else listens.
-- p_local: producers that the caller wakes by itself. Losing this costs a second: the stager polls.
CREATE OR REPLACE FUNCTION "public".baton_wake(p_queues text[], p_local uuid[], p_origin text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_queues <> '{}' THEN
    PERFORM pg_notify('public.oban_insert', json_build_object('queue', queue, 'origin', p_origin)::text)
    FROM (SELECT DISTINCT unnest(p_queues) AS queue) AS woken
    WHERE EXISTS (SELECT FROM "public".oban_producers AS producer
                  WHERE producer.queue = woken.queue AND producer.uuid <> ALL(p_local))
      AND EXISTS (SELECT FROM "public".oban_jobs AS job WHERE job.state = 'available' AND job.queue = woken.queue);
  END IF;
END
$$;

-- create_triggers: statement triggers on Oban's job table; those that exist are left alone, so this takes no lock then.
-- Three, because a trigger with transition tables may have only one event, and TRUNCATE has none.
DO $$
DECLARE
  missing record;
BEGIN
  FOR missing IN
    SELECT wanted.name, wanted.definition FROM (VALUES
      ('baton_jobs_updated',
       'AFTER UPDATE ON "public".oban_jobs REFERENCING NEW TABLE AS changed FOR EACH STATEMENT '
       'EXECUTE FUNCTION "public".baton_on_jobs_updated()'),
      ('baton_jobs_deleted',
       'AFTER DELETE ON "public".oban_jobs REFERENCING OLD TABLE AS changed FOR EACH STATEMENT '
       'EXECUTE FUNCTION "public".baton_on_jobs_deleted()'),
      ('baton_jobs_truncated',
       'AFTER TRUNCATE ON "public".oban_jobs FOR EACH STATEMENT EXECUTE FUNCTION "public".baton_on_jobs_truncated()')
    ) AS wanted (name, definition)
    WHERE NOT EXISTS (
      SELECT FROM pg_trigger AS present
      WHERE present.tgrelid = '"public".oban_jobs'::regclass AND present.tgname = wanted.name AND present.tgenabled IN ('O', 'A')
    )
  LOOP
    EXECUTE format('CREATE OR REPLACE TRIGGER %I %s', missing.name, missing.definition);
    EXECUTE format('ALTER TABLE "public".oban_jobs ENABLE TRIGGER %I', missing.name);
  END LOOP;
END
$$;

-- revoke_functions: nobody calls them who was not granted to. A trigger needs no such right of whoever fires it.
DO $$
DECLARE
  ours regprocedure;
BEGIN
  FOR ours IN
    SELECT routine.oid::regprocedure FROM pg_proc AS routine
    WHERE routine.pronamespace = 'public'::regnamespace AND routine.proname IN ('baton_ack', 'baton_cancel_jobs', 'baton_claim', 'baton_doom', 'baton_finish', 'baton_follow', 'baton_follow_one', 'baton_give_back', 'baton_insert', 'baton_on_jobs_deleted', 'baton_on_jobs_truncated', 'baton_on_jobs_updated', 'baton_owe', 'baton_reclaim', 'baton_reconcile', 'baton_release', 'baton_release_jobs', 'baton_rescue', 'baton_settle', 'baton_store', 'baton_sweep', 'baton_take_jobs', 'baton_wake')
  LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', ours);
  END LOOP;
END
$$;

INSERT INTO "public".workflow_migrations (version, name) VALUES (0, '5e21660c8a78fcd4') ON CONFLICT (version) DO UPDATE SET name = excluded.name, applied_at = now();