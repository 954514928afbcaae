-- read_missing_columns: columns of Oban's that Baton relies on and that are absent or of another type, and the state `suspended`.
-- Returns: what. Empty when all is well.
SELECT 'column ' || wanted.relation || '.' || wanted.name
       || CASE WHEN present.type IS NULL THEN ' is missing' ELSE ' is ' || present.type || ' instead of ' || wanted.types[1] END AS what
FROM (VALUES
  ('oban_jobs', 'id', ARRAY['bigint']), ('oban_jobs', 'state', ARRAY['oban_job_state']), ('oban_jobs', 'queue', ARRAY['text']),
  ('oban_jobs', 'worker', ARRAY['text']), ('oban_jobs', 'attempt', ARRAY['smallint', 'integer']),
  ('oban_jobs', 'max_attempts', ARRAY['smallint', 'integer']), ('oban_jobs', 'priority', ARRAY['smallint', 'integer']),
  ('oban_jobs', 'args', ARRAY['jsonb']), ('oban_jobs', 'meta', ARRAY['jsonb']), ('oban_jobs', 'tags', ARRAY['text[]', 'character varying(255)[]']),
  ('oban_jobs', 'errors', ARRAY['jsonb']), ('oban_jobs', 'attempted_by', ARRAY['text[]']),
  ('oban_jobs', 'inserted_at', ARRAY['timestamp without time zone']), ('oban_jobs', 'scheduled_at', ARRAY['timestamp without time zone']),
  ('oban_jobs', 'attempted_at', ARRAY['timestamp without time zone']), ('oban_jobs', 'cancelled_at', ARRAY['timestamp without time zone']),
  ('oban_jobs', 'completed_at', ARRAY['timestamp without time zone']), ('oban_jobs', 'discarded_at', ARRAY['timestamp without time zone']),
  ('oban_leaders', 'name', ARRAY['text']), ('oban_leaders', 'node', ARRAY['text']),
  ('oban_leaders', 'elected_at', ARRAY['timestamp without time zone']), ('oban_leaders', 'expires_at', ARRAY['timestamp without time zone']),
  ('oban_producers', 'uuid', ARRAY['uuid']), ('oban_producers', 'name', ARRAY['text']), ('oban_producers', 'node', ARRAY['text']),
  ('oban_producers', 'queue', ARRAY['text']), ('oban_producers', 'meta', ARRAY['jsonb']),
  ('oban_producers', 'started_at', ARRAY['timestamp without time zone']), ('oban_producers', 'updated_at', ARRAY['timestamp without time zone'])
) AS wanted (relation, name, types)
LEFT JOIN LATERAL (
  SELECT CASE WHEN type.typtype = 'e' THEN type.typname ELSE format_type(attribute.atttypid, attribute.atttypmod) END AS type
  FROM pg_attribute AS attribute JOIN pg_type AS type ON type.oid = attribute.atttypid
  WHERE attribute.attrelid = to_regclass('/* schema */' || wanted.relation) AND attribute.attname = wanted.name AND NOT attribute.attisdropped
) AS present ON true
WHERE present.type IS NULL OR present.type <> ALL(wanted.types)
UNION ALL
SELECT 'type oban_job_state has no value ''suspended'''
WHERE NOT EXISTS (
  SELECT FROM pg_enum AS label JOIN pg_type AS type ON type.oid = label.enumtypid
  WHERE type.typname = 'oban_job_state' AND type.typnamespace = to_regnamespace('"/* prefix */"') AND label.enumlabel = 'suspended')
