-- 0004_released: when a step could first run, so that its time in the queue can be told from its time behind its dependencies. No
-- default, so no row is rewritten.
ALTER TABLE /* schema */workflow_nodes ADD COLUMN released_at timestamptz;

COMMENT ON COLUMN /* schema */workflow_nodes.released_at IS 'when its last dependency settled; null for a root, which its job''s scheduled_at tells of';
