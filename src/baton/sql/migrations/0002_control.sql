-- 0002_control: what lets a run be cancelled, paused, retried, run again and held to a deadline, its end be delivered, and its
-- rows be pruned. Every column has a constant default, so no row is rewritten; a constraint that replaces a stricter one is
-- NOT VALID, because rows that passed the old one pass it, and nobody need wait while they are read.

ALTER TABLE /* schema */workflows
  ADD COLUMN paused_at timestamptz,
  ADD COLUMN cancel_requested_at timestamptz,
  ADD COLUMN cancel_reason text,
  ADD COLUMN cancel_cause text CHECK (cancel_cause IN ('request', 'deadline')),
  ADD COLUMN deadline_at timestamptz,
  ADD COLUMN rerun_of uuid,
  ADD COLUMN revived_at timestamptz,
  DROP CONSTRAINT workflows_outcome_check,
  DROP CONSTRAINT workflow_outcome_follows_its_steps,
  ADD CONSTRAINT cancel_has_a_cause CHECK ((cancel_requested_at IS NULL) = (cancel_cause IS NULL)),
  ADD CONSTRAINT workflow_outcome_follows_its_steps CHECK (outcome IS NULL OR outcome = CASE
    WHEN cancel_cause = 'request' THEN 'cancelled'
    WHEN cancel_cause = 'deadline' OR failed > excused THEN 'failed'
    ELSE 'completed' END) NOT VALID;

COMMENT ON COLUMN /* schema */workflows.cancel_cause IS 'who ended it early: a request, or its deadline';
COMMENT ON COLUMN /* schema */workflows.revived_at IS 'when its present generation began; null in the first';
COMMENT ON COLUMN /* schema */workflows.rerun_of IS 'the workflow whose settled steps this one copied';

CREATE INDEX workflows_deadline ON /* schema */workflows (deadline_at) WHERE finished_at IS NULL AND deadline_at IS NOT NULL;
CREATE INDEX workflows_finished ON /* schema */workflows (finished_at) WHERE finished_at IS NOT NULL;

ALTER TABLE /* schema */workflow_nodes
  ADD COLUMN runs_on text NOT NULL DEFAULT 'success' CHECK (runs_on IN ('success', 'always', 'failure')),
  ADD COLUMN hooked boolean NOT NULL DEFAULT false,
  ADD COLUMN cancel_requested_at timestamptz,
  ADD COLUMN cancel_reason text,
  DROP CONSTRAINT workflow_nodes_state_check,
  DROP CONSTRAINT settled_has_a_time,
  DROP CONSTRAINT doomed_is_cancelled,
  ADD CONSTRAINT workflow_nodes_state_check
    CHECK (state IN ('held', 'released', 'completed', 'cancelled', 'discarded', 'skipped')) NOT VALID,
  ADD CONSTRAINT settled_has_a_time CHECK ((state NOT IN ('held', 'released')) = (settled_at IS NOT NULL)) NOT VALID,
  ADD CONSTRAINT doomed_is_cancelled CHECK (NOT doomed OR state IN ('cancelled', 'skipped')) NOT VALID;

COMMENT ON COLUMN /* schema */workflow_nodes.runs_on IS 'when its dependencies have settled: after success, always, or only after a failure';
COMMENT ON COLUMN /* schema */workflow_nodes.hooked IS 'it wants to hear that a dependency doomed it';
COMMENT ON COLUMN /* schema */workflow_nodes.cancel_requested_at IS 'it was running when it was cancelled; whatever its attempt comes to, it ends cancelled';

CREATE TABLE /* schema */workflow_consumers (
  name text PRIMARY KEY,
  inserted_at timestamptz NOT NULL DEFAULT now()
);

-- Written by the commit that made it true, deleted when it was delivered: to a consumer that a run has finished, or to a step's
-- code that a dependency doomed it.
CREATE TABLE /* schema */workflow_deliveries (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  workflow_id uuid NOT NULL,
  generation integer NOT NULL,
  consumer text,
  step_id bigint,
  cause text CHECK (cause IN ('cancelled', 'discarded')),
  reason text,
  tries integer NOT NULL DEFAULT 0,
  due_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT delivered_to_a_consumer_or_a_step
    CHECK ((consumer IS NULL) <> (step_id IS NULL) AND (step_id IS NULL) = (cause IS NULL))
);
CREATE INDEX workflow_deliveries_due ON /* schema */workflow_deliveries (due_at);
CREATE INDEX workflow_deliveries_workflow ON /* schema */workflow_deliveries (workflow_id);

CREATE TABLE /* schema */workflow_debug_logs (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  workflow_id uuid NOT NULL,
  step_id bigint NOT NULL,
  attempt integer NOT NULL,
  model text,
  request jsonb,
  response jsonb,
  context jsonb,
  inserted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX workflow_debug_logs_age ON /* schema */workflow_debug_logs (inserted_at);
CREATE INDEX workflow_debug_logs_workflow ON /* schema */workflow_debug_logs (workflow_id);
