-- count_runs: how many workflows are in a state. Params: state; limit, how many are counted at most; and what narrows it, as in
-- list_runs.
SELECT count(*) FROM (
  SELECT FROM /* schema */workflows
  WHERE coalesce(outcome, 'executing') = %(state)s::text
    AND (%(name)s::text IS NULL OR name = %(name)s::text)
    AND (%(key)s::text IS NULL OR key = %(key)s::text)
    AND (%(name_prefix)s::text IS NULL OR name LIKE %(name_prefix)s::text)
    AND (%(search)s::text IS NULL OR name ILIKE %(search)s::text OR key ILIKE %(search)s::text
         OR id BETWEEN %(first_id)s::uuid AND %(last_id)s::uuid)
    AND (%(inserted_after)s::timestamptz IS NULL OR inserted_at >= %(inserted_after)s::timestamptz)
    AND (%(inserted_before)s::timestamptz IS NULL OR inserted_at < %(inserted_before)s::timestamptz)
  LIMIT %(limit)s
) AS counted
