-- read_missing_tables: tables of Baton's and indexes that are absent, or were left half built. Params: ours text[] (tables), indexes text[].
-- Returns: what. Empty when all is well.
SELECT 'table ' || name || ' is missing' AS what FROM unnest(%(ours)s::text[]) AS name WHERE to_regclass('/* schema */' || name) IS NULL
UNION ALL
SELECT 'index ' || name || CASE WHEN to_regclass('/* schema */' || name) IS NULL THEN ' is missing' ELSE ' is invalid' END
FROM unnest(%(indexes)s::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('/* schema */' || name) AND indisvalid)
