-- read_functions: Baton's functions as the database has them. Returns: name without `baton_`, signature, source, whether it runs with its
-- owner's rights, the search path it sets (null for none), whether everybody may call it.
SELECT substr(routine.proname, 7) AS name, routine.oid::regprocedure::text AS signature, routine.prosrc AS source,
       routine.prosecdef AS definer,
       (SELECT setting FROM unnest(routine.proconfig) AS setting WHERE setting LIKE 'search_path=%%') AS search_path,
       has_function_privilege('public', routine.oid, 'EXECUTE') AS everybody
FROM pg_proc AS routine
WHERE routine.pronamespace = to_regnamespace('"/* prefix */"') AND routine.proname IN (/* functions */)
ORDER BY routine.proname
