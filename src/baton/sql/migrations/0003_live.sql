-- 0003_live: what steps tell while they run. New tables only, so nothing that runs meanwhile is held up or rewritten.

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
