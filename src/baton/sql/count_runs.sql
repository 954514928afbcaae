-- count_runs: how many workflows are in each state. Params: states; limit, of each at most; and what narrows it, as in list_runs.
SELECT wanted.state, (
  SELECT count(*) FROM (
    SELECT FROM /* schema */workflows AS workflow
    WHERE coalesce(workflow.outcome, 'executing') = wanted.state
      AND (%(name)s::text IS NULL OR workflow.name = %(name)s::text)
      AND (%(key)s::text IS NULL OR workflow.key = %(key)s::text)
      AND (%(name_prefix)s::text IS NULL OR workflow.name LIKE %(name_prefix)s::text)
      AND (%(search)s::text IS NULL OR workflow.name ILIKE %(search)s::text OR workflow.key ILIKE %(search)s::text
           OR workflow.id BETWEEN %(first_id)s::uuid AND %(last_id)s::uuid)
      AND (%(inserted_after)s::timestamptz IS NULL OR workflow.inserted_at >= %(inserted_after)s::timestamptz)
      AND (%(inserted_before)s::timestamptz IS NULL OR workflow.inserted_at < %(inserted_before)s::timestamptz)
    LIMIT %(limit)s
  ) AS counted
)
FROM unnest(%(states)s::text[]) WITH ORDINALITY AS wanted (state, place)
ORDER BY wanted.place
