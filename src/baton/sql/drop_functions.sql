-- drop_functions: make room for this library's functions. Those behind triggers stay, and are replaced.
DO $$
DECLARE
  ours regprocedure;
BEGIN
  FOR ours IN
    SELECT routine.oid::regprocedure FROM pg_proc AS routine
    WHERE routine.pronamespace = '/* prefix */'::regnamespace AND routine.proname IN (/* functions */)
      AND routine.prorettype <> 'trigger'::regtype
  LOOP
    EXECUTE format('DROP FUNCTION %s', ours);
  END LOOP;
END
$$;
