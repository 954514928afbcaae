-- list_runs: workflows, newest first (ids are ordered by time). Params: state or null, before (id) or null, limit.
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at,
       paused_at, cancel_requested_at, cancel_reason, deadline_at, rerun_of
FROM /* schema */workflows
WHERE (%(state)s::text IS NULL OR coalesce(outcome, 'executing') = %(state)s::text)
  AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
ORDER BY id DESC LIMIT %(limit)s
