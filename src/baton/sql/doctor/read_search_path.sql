-- read_search_path: whether Oban's statements, which name no schema where it is public, find other tables than ours.
-- Returns: search_path, found (the table they find, null for none). Empty when all is well.
SELECT current_setting('search_path') AS search_path, to_regclass('oban_jobs')::text AS found
WHERE '/* prefix */' = 'public' AND to_regclass('oban_jobs') IS DISTINCT FROM to_regclass('/* schema */oban_jobs')
