-- read_lost_jobs: jobs that run, says their row, in a process of which nothing is known, for longer than a rescue takes. Params: seconds.
-- Returns: count (1,000 at most), nodes, producers (how many rows there are), started_at of the server. Empty when all is well.
SELECT count(*) AS count, left(string_agg(DISTINCT coalesce(node, 'unknown'), ', '), 200) AS nodes,
       (SELECT count(*) FROM /* schema */oban_producers) AS producers,
       to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC' AS started_at
FROM (
  SELECT job.attempted_by[1] AS node FROM /* schema */oban_jobs AS job
  WHERE job.state = 'executing' AND job.attempted_at < timezone('UTC', clock_timestamp()) - make_interval(secs => %(seconds)s)
    AND NOT EXISTS (SELECT FROM /* schema */oban_producers AS producer
                    WHERE producer.uuid::text = job.attempted_by[2]
                      AND producer.updated_at > timezone('UTC', clock_timestamp()) - make_interval(secs => %(seconds)s))
  LIMIT 1000
) AS lost
HAVING count(*) > 0
