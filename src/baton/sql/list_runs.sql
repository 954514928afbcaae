-- list_runs: workflows, newest first (ids are ordered by time). Params: limit; state or null; before, an id or null; and what narrows
-- the list.
SELECT
/* run */
FROM /* schema */workflows
WHERE (%(state)s::text IS NULL OR coalesce(outcome, 'executing') = %(state)s::text)
  AND /* narrowed */
  AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
ORDER BY id DESC LIMIT %(limit)s
