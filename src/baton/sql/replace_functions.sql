-- replace_functions: make this library's functions. One that exists is replaced in place, so that a statement which is under way in
-- it comes to its end, and roles keep what they were granted. Only one whose result or names of parameters changed is dropped
-- first; one whose types of parameters changed would stay beside its successor, and is dropped after it.
DO $replace$
DECLARE
  wanted record;
  former text[];
  stale regprocedure;
BEGIN
  FOR wanted IN SELECT given.name, given.definition FROM (VALUES
/* definitions */
  ) AS given (name, definition) LOOP
    former := ARRAY(SELECT routine.oid || ' ' || routine.ctid FROM pg_proc AS routine
                    WHERE routine.pronamespace = '/* prefix */'::regnamespace AND routine.proname = wanted.name);
    BEGIN
      EXECUTE wanted.definition;
    EXCEPTION WHEN invalid_function_definition THEN
      FOR stale IN SELECT routine.oid::regprocedure FROM pg_proc AS routine
                   WHERE routine.pronamespace = '/* prefix */'::regnamespace AND routine.proname = wanted.name LOOP
        EXECUTE format('DROP FUNCTION %s', stale);
      END LOOP;
      EXECUTE wanted.definition;
    END;
    -- What was replaced has a new row version.
    FOR stale IN SELECT routine.oid::regprocedure FROM pg_proc AS routine
                 WHERE routine.pronamespace = '/* prefix */'::regnamespace AND routine.proname = wanted.name
                   AND routine.oid || ' ' || routine.ctid = ANY(former) LOOP
      EXECUTE format('DROP FUNCTION %s', stale);
    END LOOP;
  END LOOP;
END
$replace$;
