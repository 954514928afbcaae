-- 0001_workflows: the tables that make jobs into workflows.
-- No foreign keys. One to oban_jobs would let Oban's TRUNCATE ... CASCADE take our rows along, and ones among our own
-- tables would double the cost of an insert; rows are written by one function and deleted by whole workflows.

CREATE TABLE /* schema */workflows (
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

COMMENT ON COLUMN /* schema */workflows.failed IS 'steps that settled cancelled or discarded';
COMMENT ON COLUMN /* schema */workflows.excused IS 'of the failed, those that every dependent was told to ignore';

-- A key is unique among live workflows; the index lists those without a key as well. The counters are in no index, so counting down stays a HOT update.
CREATE UNIQUE INDEX workflows_live_key ON /* schema */workflows (key) WHERE finished_at IS NULL;

CREATE TABLE /* schema */workflow_nodes (
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

COMMENT ON COLUMN /* schema */workflow_nodes.state IS 'held, released, or as settled; a released step''s live state is its job''s';
COMMENT ON COLUMN /* schema */workflow_nodes.owed IS 'the job row was locked when it had to follow this step; the sweep makes it follow';

-- `state` is in no index and no predicate, so releasing and settling stay HOT updates.
CREATE UNIQUE INDEX workflow_nodes_job ON /* schema */workflow_nodes (job_id);
CREATE UNIQUE INDEX workflow_nodes_name ON /* schema */workflow_nodes (workflow_id, name);
CREATE INDEX workflow_nodes_owed ON /* schema */workflow_nodes (id) WHERE owed;

CREATE TABLE /* schema */workflow_edges (
  dependency_id bigint NOT NULL,
  dependent_id bigint NOT NULL CHECK (dependent_id <> dependency_id),
  PRIMARY KEY (dependency_id, dependent_id)
);

CREATE INDEX workflow_edges_dependent ON /* schema */workflow_edges (dependent_id, dependency_id);

CREATE TABLE /* schema */workflow_completions (
  workflow_id uuid NOT NULL,
  generation integer NOT NULL,
  event_id uuid NOT NULL DEFAULT gen_random_uuid(),
  outcome text NOT NULL,
  failed_steps text[] NOT NULL,
  finished_at timestamptz NOT NULL,
  PRIMARY KEY (workflow_id, generation)
);

CREATE TABLE /* schema */workflow_checkpoints (
  step_id bigint NOT NULL,
  key text NOT NULL,
  value jsonb NOT NULL,
  attempt integer NOT NULL,
  inserted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (step_id, key)
);

CREATE TABLE /* schema */workflow_repairs (
  step_id bigint PRIMARY KEY,
  state text NOT NULL CHECK (state IN ('completed', 'cancelled', 'discarded')),
  sqlstate text NOT NULL,
  error text NOT NULL,
  inserted_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE /* schema */workflow_subscribers (
  topic text NOT NULL,
  subscriber uuid NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (topic, subscriber)
);
