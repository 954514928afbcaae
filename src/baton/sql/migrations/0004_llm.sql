-- 0004_llm: what calls of models used and cost, budgets that hold across processes and restarts, and captured calls. No row is
-- rewritten: every new column of a table that is there already is null or has a constant default.

ALTER TABLE /* schema */workflow_nodes
  ADD COLUMN debug boolean NOT NULL DEFAULT false,
  ADD COLUMN budgeted boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN /* schema */workflow_nodes.debug IS 'its calls of models are captured';
COMMENT ON COLUMN /* schema */workflow_nodes.budgeted IS 'its run has a budget, so its calls of models ask for leave first';

-- A fact, not a state: a row is written once, whatever becomes of the attempt, and outlives its run, so that reports stay right.
-- Null is unknown, never 0.
CREATE TABLE /* schema */workflow_step_stats (
  id uuid PRIMARY KEY,
  workflow_id uuid NOT NULL,
  workflow_label text NOT NULL,
  step_id bigint NOT NULL,
  step_name text NOT NULL,
  attempt integer NOT NULL,
  call_key text,
  provider text,
  model text,
  service_tier text,
  input_tokens bigint CHECK (input_tokens >= 0),
  output_tokens bigint CHECK (output_tokens >= 0),
  cache_read_tokens bigint CHECK (cache_read_tokens >= 0),
  cache_write_tokens bigint CHECK (cache_write_tokens >= 0),
  reasoning_tokens bigint CHECK (reasoning_tokens >= 0),
  units jsonb,
  latency_ms double precision CHECK (latency_ms >= 0),
  -- Numeric has NaN and infinities, too, which are beyond any bound.
  cost_usd numeric CHECK (cost_usd >= 0 AND cost_usd < 1e40),
  price_source text,
  price_version text,
  inserted_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT a_cost_has_a_source CHECK ((cost_usd IS NULL) = (price_source IS NULL)),
  CONSTRAINT cached_tokens_are_of_the_input
    CHECK (coalesce(cache_read_tokens, 0) + coalesce(cache_write_tokens, 0) <= coalesce(input_tokens, 0)),
  CONSTRAINT reasoning_tokens_are_of_the_output CHECK (coalesce(reasoning_tokens, 0) <= coalesce(output_tokens, 0))
);

COMMENT ON COLUMN /* schema */workflow_step_stats.id IS 'given by whoever made the call, so that what is sent twice is written once';
COMMENT ON COLUMN /* schema */workflow_step_stats.input_tokens IS 'all that went in, those of caches included; null: not known';
COMMENT ON COLUMN /* schema */workflow_step_stats.output_tokens IS 'all that came out, reasoning included; null: not known';
COMMENT ON COLUMN /* schema */workflow_step_stats.units IS 'what else was counted and has a price of its own: audio, searches, caches by their time';
COMMENT ON COLUMN /* schema */workflow_step_stats.cost_usd IS 'null: no price is known, or not what was used';
COMMENT ON COLUMN /* schema */workflow_step_stats.call_key IS 'key of the stored call, of those made with `once`';

CREATE INDEX workflow_step_stats_workflow ON /* schema */workflow_step_stats (workflow_id, step_id);
CREATE INDEX workflow_step_stats_age ON /* schema */workflow_step_stats (inserted_at);

-- A limit that is null does not hold. What was topped up is kept apart from the limit, which is the application's own to change.
CREATE TABLE /* schema */workflow_budgets (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  key text UNIQUE,
  workflow_id uuid UNIQUE,
  limit_usd numeric CHECK (limit_usd >= 0),
  limit_tokens bigint CHECK (limit_tokens >= 0),
  limit_calls bigint CHECK (limit_calls >= 0),
  added_usd numeric NOT NULL DEFAULT 0,
  added_tokens bigint NOT NULL DEFAULT 0,
  added_calls bigint NOT NULL DEFAULT 0,
  spent_usd numeric NOT NULL DEFAULT 0 CHECK (spent_usd >= 0),
  spent_tokens bigint NOT NULL DEFAULT 0 CHECK (spent_tokens >= 0),
  spent_calls bigint NOT NULL DEFAULT 0 CHECK (spent_calls >= 0),
  unpriced_calls bigint NOT NULL DEFAULT 0 CHECK (unpriced_calls >= 0),
  reserved_usd numeric NOT NULL DEFAULT 0 CHECK (reserved_usd >= 0),
  reserved_tokens bigint NOT NULL DEFAULT 0 CHECK (reserved_tokens >= 0),
  reserved_calls bigint NOT NULL DEFAULT 0 CHECK (reserved_calls >= 0),
  on_exhausted text NOT NULL CHECK (on_exhausted IN ('stop', 'pause')),
  unpriced text NOT NULL CHECK (unpriced IN ('strict', 'warn')),
  raised_at timestamptz NOT NULL DEFAULT now(),
  inserted_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT a_budget_is_shared_or_of_a_run CHECK ((key IS NULL) <> (workflow_id IS NULL))
) WITH (fillfactor = 50);

COMMENT ON COLUMN /* schema */workflow_budgets.unpriced_calls IS 'of the spent calls, those whose cost is not known: as much at least was spent';

CREATE TABLE /* schema */workflow_budget_runs (
  workflow_id uuid NOT NULL,
  budget_id bigint NOT NULL,
  PRIMARY KEY (workflow_id, budget_id)
);
CREATE INDEX workflow_budget_runs_budget ON /* schema */workflow_budget_runs (budget_id);

COMMENT ON COLUMN /* schema */workflow_budgets.raised_at IS 'when something was added, or given back, or its limits changed: runs that it paused before go on';

-- What a call that is under way may come to; one row for each budget that it draws on. Gone when it is settled.
CREATE TABLE /* schema */workflow_reservations (
  id uuid NOT NULL,
  budget_id bigint NOT NULL,
  step_id bigint NOT NULL,
  job_id bigint NOT NULL,
  attempted_at timestamp NOT NULL,
  usd numeric NOT NULL CHECK (usd >= 0),
  tokens bigint NOT NULL CHECK (tokens >= 0),
  calls bigint NOT NULL CHECK (calls >= 0),
  lost_at timestamptz,
  inserted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (id, budget_id)
);
COMMENT ON COLUMN /* schema */workflow_reservations.lost_at IS 'when it was charged in full, for its attempt had lost its job';
CREATE INDEX workflow_reservations_budget ON /* schema */workflow_reservations (budget_id) WHERE lost_at IS NULL;
CREATE INDEX workflow_reservations_step ON /* schema */workflow_reservations (step_id);

ALTER TABLE /* schema */workflows ADD COLUMN paused_for bigint;
COMMENT ON COLUMN /* schema */workflows.paused_for IS 'the budget that paused it; adding to that lets it go on';
CREATE INDEX workflows_paused_for ON /* schema */workflows (paused_for) WHERE paused_for IS NOT NULL;

ALTER TABLE /* schema */workflow_debug_logs
  ADD COLUMN call_id uuid,
  ADD COLUMN step_name text,
  ADD COLUMN call_key text,
  ADD COLUMN error text;
COMMENT ON COLUMN /* schema */workflow_debug_logs.call_id
IS 'given by whoever captured it, so that it is written once; that of its row in workflow_step_stats, where it has one';
COMMENT ON COLUMN /* schema */workflow_debug_logs.call_key IS 'key of the stored call, of those made with `once`';
COMMENT ON COLUMN /* schema */workflow_debug_logs.error IS 'what the call raised instead of answering';
-- Read by run or by step, in the order they were written. Nothing has written into the table before.
DROP INDEX /* schema */workflow_debug_logs_workflow;
CREATE INDEX workflow_debug_logs_workflow ON /* schema */workflow_debug_logs (workflow_id, id);
CREATE INDEX workflow_debug_logs_step ON /* schema */workflow_debug_logs (step_id, id);
CREATE UNIQUE INDEX workflow_debug_logs_call ON /* schema */workflow_debug_logs (call_id);
