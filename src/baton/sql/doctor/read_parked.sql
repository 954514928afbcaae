-- read_parked: jobs that wait for a worker that knows their code. Returns: reason, count (1,000 at most in all). Empty when all is well.
SELECT left(reason, 300) AS reason, count(*) AS count
FROM (SELECT job.meta ->> 'parked' AS reason FROM /* schema */oban_jobs AS job WHERE job.state = 'scheduled' AND job.meta ? 'parked' LIMIT 1000) AS parked
GROUP BY reason ORDER BY count(*) DESC LIMIT 5
