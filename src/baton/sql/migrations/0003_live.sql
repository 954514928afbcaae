-- 0003_live: what steps tell while they run, and what lists of runs and steps are read by. No row is rewritten. The indexes on tables
-- that are there already are built while workers wait, a second or two for a million rows; on a larger table they can be built
-- beforehand, CONCURRENTLY and under the same names, and are then left as they are.

-- Rewritten as often as its step says something new: no index has a column that changes, so such an update stays on its page.
CREATE TABLE /* schema */workflow_progress (
  step_id bigint PRIMARY KEY,
  workflow_id uuid NOT NULL,
  attempt integer NOT NULL,
  attempted_at timestamp NOT NULL,
  done double precision CHECK (done >= 0),
  total double precision CHECK (total > 0),
  message text,
  first_chunk integer NOT NULL DEFAULT 0 CHECK (first_chunk >= 0),
  chunks integer NOT NULL DEFAULT 0 CHECK (chunks >= first_chunk),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT progress_is_of_something CHECK (done IS NOT NULL OR total IS NULL AND message IS NULL)
) WITH (fillfactor = 50);

COMMENT ON COLUMN /* schema */workflow_progress.done IS 'null while the attempt has only streamed';
COMMENT ON COLUMN /* schema */workflow_progress.attempted_at IS 'of the claim that reported last: after a snooze an attempt has another';
COMMENT ON COLUMN /* schema */workflow_progress.chunks IS 'chunks that the attempt has streamed';
COMMENT ON COLUMN /* schema */workflow_progress.first_chunk IS 'of these, those of earlier claims of the same attempt';

CREATE INDEX workflow_progress_workflow ON /* schema */workflow_progress (workflow_id);

CREATE TABLE /* schema */workflow_streams (
  step_id bigint NOT NULL,
  attempt integer NOT NULL,
  position integer NOT NULL CHECK (position >= 0),
  workflow_id uuid NOT NULL,
  chunk jsonb NOT NULL,
  bytes integer NOT NULL,
  inserted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (step_id, attempt, position)
);

COMMENT ON COLUMN /* schema */workflow_streams.bytes IS 'of the chunk as JSON, so that a page is measured without reading what is on it';

-- Lists come out of these in their order, newest first, and end early.
CREATE INDEX IF NOT EXISTS workflows_state ON /* schema */workflows ((coalesce(outcome, 'executing')), id);
CREATE INDEX IF NOT EXISTS workflows_name ON /* schema */workflows (name text_pattern_ops, id);
CREATE INDEX IF NOT EXISTS workflows_key ON /* schema */workflows (key, id) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS workflows_inserted ON /* schema */workflows (inserted_at);
CREATE INDEX IF NOT EXISTS workflow_nodes_position ON /* schema */workflow_nodes (workflow_id, position);

-- When a step could first run, so that its time in the queue can be told from its time behind its dependencies. No default, so no row
-- is rewritten.
ALTER TABLE /* schema */workflow_nodes ADD COLUMN released_at timestamptz;

COMMENT ON COLUMN /* schema */workflow_nodes.released_at IS 'when its last dependency settled; null for a root, which its job''s scheduled_at tells of';
