-- count_runs: how many workflows are in a state. Params: state; limit, how many are counted at most; and what narrows it.
SELECT count(*) FROM (
  SELECT FROM /* schema */workflows
  WHERE coalesce(outcome, 'executing') = %(state)s::text
    AND /* narrowed */
  LIMIT %(limit)s
) AS counted
