-- read_followed_runs: workflows as read_run gives them, each with a mark that is another one whenever its row was changed.
-- Params: ids uuid[]. The newest first.
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at,
       paused_at, cancel_requested_at, cancel_reason, deadline_at, rerun_of, xmin::text AS mark
FROM /* schema */workflows WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id DESC
