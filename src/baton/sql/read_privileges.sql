-- read_privileges: whether this role may call Baton's functions; null where there are none. One row.
SELECT bool_and(has_function_privilege(routine.oid, 'EXECUTE')) FROM pg_proc AS routine
WHERE routine.pronamespace = to_regnamespace('"/* prefix */"') AND routine.proname IN (/* functions */)
