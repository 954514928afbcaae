-- read_missing_triggers: triggers on the job table that are absent or disabled. Returns: name.
SELECT name FROM unnest(ARRAY['baton_jobs_updated', 'baton_jobs_deleted', 'baton_jobs_truncated']) AS name
WHERE NOT EXISTS (
  SELECT FROM pg_trigger AS present
  WHERE present.tgrelid = '/* schema */oban_jobs'::regclass AND present.tgname = name AND present.tgenabled IN ('O', 'A'))
