-- read_run: one workflow, without its steps. Params: id. At most one row.
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at,
       paused_at, cancel_requested_at, cancel_reason, deadline_at, rerun_of
FROM /* schema */workflows WHERE id = %(id)s
