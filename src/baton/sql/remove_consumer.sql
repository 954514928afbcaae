-- remove_consumer: deliver nothing to a consumer any more; what it was not told goes with it. Params: name. Returns its name.
WITH removed AS (
  DELETE FROM /* schema */workflow_consumers WHERE name = %(name)s RETURNING name
), forgotten AS (
  DELETE FROM /* schema */workflow_deliveries WHERE consumer = %(name)s
)
SELECT name FROM removed
