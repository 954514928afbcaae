-- list_runs: workflows, newest first (ids are ordered by time). Params: limit, and what narrows it, null each: state; name, key;
-- name_prefix, a pattern of LIKE; search, one of ILIKE, with first_id and last_id; inserted_after, inserted_before; before, an id.
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at,
       paused_at, cancel_requested_at, cancel_reason, deadline_at, rerun_of
FROM /* schema */workflows
WHERE (%(state)s::text IS NULL OR coalesce(outcome, 'executing') = %(state)s::text)
  AND (%(name)s::text IS NULL OR name = %(name)s::text)
  AND (%(key)s::text IS NULL OR key = %(key)s::text)
  AND (%(name_prefix)s::text IS NULL OR name LIKE %(name_prefix)s::text)
  AND (%(search)s::text IS NULL OR name ILIKE %(search)s::text OR key ILIKE %(search)s::text
       OR id BETWEEN %(first_id)s::uuid AND %(last_id)s::uuid)
  AND (%(inserted_after)s::timestamptz IS NULL OR inserted_at >= %(inserted_after)s::timestamptz)
  AND (%(inserted_before)s::timestamptz IS NULL OR inserted_at < %(inserted_before)s::timestamptz)
  AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
ORDER BY id DESC LIMIT %(limit)s
