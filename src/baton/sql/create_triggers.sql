-- create_triggers: statement triggers on Oban's job table; those that exist are left alone, so this takes no lock then.
-- Three, because a trigger with transition tables may have only one event, and TRUNCATE has none.
DO $$
DECLARE
  missing record;
BEGIN
  FOR missing IN
    SELECT wanted.name, wanted.definition FROM (VALUES
      ('baton_jobs_updated',
       'AFTER UPDATE ON /* schema */oban_jobs REFERENCING NEW TABLE AS changed FOR EACH STATEMENT '
       'EXECUTE FUNCTION /* schema */baton_on_jobs_updated()'),
      ('baton_jobs_deleted',
       'AFTER DELETE ON /* schema */oban_jobs REFERENCING OLD TABLE AS changed FOR EACH STATEMENT '
       'EXECUTE FUNCTION /* schema */baton_on_jobs_deleted()'),
      ('baton_jobs_truncated',
       'AFTER TRUNCATE ON /* schema */oban_jobs FOR EACH STATEMENT EXECUTE FUNCTION /* schema */baton_on_jobs_truncated()')
    ) AS wanted (name, definition)
    WHERE NOT EXISTS (
      SELECT FROM pg_trigger AS present
      WHERE present.tgrelid = '/* schema */oban_jobs'::regclass AND present.tgname = wanted.name AND present.tgenabled IN ('O', 'A')
    )
  LOOP
    EXECUTE format('CREATE OR REPLACE TRIGGER %I %s', missing.name, missing.definition);
    EXECUTE format('ALTER TABLE /* schema */oban_jobs ENABLE TRIGGER %I', missing.name);
  END LOOP;
END
$$;
