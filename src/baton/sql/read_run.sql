-- read_run: one workflow, without its steps. Params: id; name_prefix, a pattern of LIKE, or null. At most one row.
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at,
       paused_at, cancel_requested_at, cancel_reason, deadline_at, rerun_of
FROM /* schema */workflows
WHERE id = %(id)s AND (%(name_prefix)s::text IS NULL OR name LIKE %(name_prefix)s::text)
