-- read_missing_rights: what the current role may not do and a worker must. Params: ours text[] (Baton's tables), oban text[] (Oban's).
-- Returns: what. Empty when all is well.
SELECT 'USAGE on schema /* prefix */' AS what WHERE NOT has_schema_privilege(to_regnamespace('"/* prefix */"'), 'USAGE')
UNION ALL
SELECT string_agg(privilege, ', ' ORDER BY privilege) || ' on ' || class.relname
FROM pg_class AS class
CROSS JOIN unnest(CASE class.relname WHEN 'workflow_migrations' THEN ARRAY['SELECT'] ELSE ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] END) AS privilege
WHERE class.relnamespace = to_regnamespace('"/* prefix */"') AND class.relname = ANY(%(ours)s::text[] || %(oban)s::text[])
  AND NOT has_table_privilege(class.oid, privilege)
GROUP BY class.relname
UNION ALL
SELECT 'USAGE on sequence ' || sequence.relname
FROM pg_class AS sequence
JOIN pg_depend AS owned ON owned.objid = sequence.oid AND owned.classid = 'pg_class'::regclass AND owned.deptype IN ('a', 'i')
JOIN pg_class AS class ON class.oid = owned.refobjid
WHERE class.relnamespace = to_regnamespace('"/* prefix */"') AND class.relname = ANY(%(ours)s::text[] || %(oban)s::text[])
  -- The default of an identity column needs no right; Baton takes ids ahead for these two.
  AND class.relname IN ('oban_jobs', 'workflow_nodes')
  -- One expression, so that the right is asked of sequences alone.
  AND CASE sequence.relkind WHEN 'S' THEN NOT has_sequence_privilege(sequence.oid, 'USAGE') END
UNION ALL
SELECT 'EXECUTE on function ' || routine.proname
FROM pg_proc AS routine
WHERE routine.pronamespace = to_regnamespace('"/* prefix */"') AND routine.proname IN (/* functions */)
  AND NOT has_function_privilege(routine.oid, 'EXECUTE')
