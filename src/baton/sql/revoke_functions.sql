-- revoke_functions: functions run with their owner's rights, so nobody calls them who was not granted to.
DO $$
DECLARE
  ours regprocedure;
BEGIN
  FOR ours IN
    SELECT routine.oid::regprocedure FROM pg_proc AS routine
    WHERE routine.pronamespace = '/* prefix */'::regnamespace AND routine.proname IN (/* functions */)
  LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', ours);
  END LOOP;
END
$$;
