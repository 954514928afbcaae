-- read_owed: steps whose jobs have been owing a release or an end for too long. Params: seconds. Returns: count (1,000 at most), seconds of
-- the oldest. Empty when all is well.
SELECT count(*) AS count, max(seconds)::bigint AS seconds
FROM (
  SELECT extract(epoch FROM clock_timestamp() - coalesce(step.settled_at, (
    SELECT max(dependency.settled_at) FROM /* schema */workflow_edges AS edge
    JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id WHERE edge.dependent_id = step.id))) AS seconds
  FROM /* schema */workflow_nodes AS step WHERE step.owed LIMIT 1000
) AS owing
WHERE seconds > %(seconds)s HAVING count(*) > 0
