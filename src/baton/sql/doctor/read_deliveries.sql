-- read_deliveries: ends of runs that nobody takes, or that fail each time they are delivered. Params: tries, late (seconds).
-- Returns: what, count, tries, seconds since the first of them was due. Empty when all is well.
SELECT coalesce('to consumer ' || consumer, 'to code of steps') AS what, count(*) AS count, max(tries) AS tries,
       greatest(0, extract(epoch FROM clock_timestamp() - min(due_at)))::bigint AS seconds
FROM (
  SELECT consumer, tries, due_at FROM /* schema */workflow_deliveries
  WHERE tries > %(tries)s OR due_at < clock_timestamp() - make_interval(secs => %(late)s) LIMIT 1000
) AS failing
GROUP BY consumer ORDER BY count(*) DESC LIMIT 20
