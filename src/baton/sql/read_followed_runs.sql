-- read_followed_runs: workflows as read_run gives them, each with a mark that is another one whenever its row was changed.
-- Params: ids uuid[]. The newest first.
SELECT
/* run */, xmin::text AS mark
FROM /* schema */workflows WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id DESC
