-- revoke_functions: nobody calls them who was not granted to. A trigger needs no such right of whoever fires it.
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
