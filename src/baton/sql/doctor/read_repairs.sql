-- read_repairs: steps that could not be settled when their jobs ended. Returns: count, sqlstate, error of one. Empty when all is well.
SELECT count(*) AS count, repair.sqlstate, left(min(repair.error), 300) AS error
FROM /* schema */workflow_repairs AS repair GROUP BY repair.sqlstate ORDER BY count(*) DESC LIMIT 5
