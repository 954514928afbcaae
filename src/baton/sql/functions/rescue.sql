-- rescue: run jobs again whose process is gone, not those that are slow: the producer that claimed them has no row any more.
-- Producers refresh their rows each 15 seconds, and the leader removes one that has not for a minute. The table is unlogged and
-- empty after a crash of the server, so absence means nothing in the server's first minute, nor in a claim's. A job with
-- no attempt left is discarded, with a reason. Returns how many were rescued or discarded.
CREATE OR REPLACE FUNCTION /* schema */baton_rescue(p_grace double precision) RETURNS bigint
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  rescued bigint;
BEGIN
  IF pg_postmaster_start_time() > clock_timestamp() - make_interval(secs => p_grace) THEN
    RETURN 0;
  END IF;
  WITH dead AS (
    SELECT job.id FROM /* schema */oban_jobs AS job
    WHERE (job.state = 'executing'
           AND job.attempted_at < timezone('UTC', now()) - make_interval(secs => p_grace)
           AND NOT EXISTS (SELECT FROM /* schema */oban_producers AS producer
                           WHERE producer.uuid::text = job.attempted_by[2]))
       OR (job.state = 'available' AND job.attempt >= job.max_attempts)
    ORDER BY job.id FOR UPDATE SKIP LOCKED
  )
  UPDATE /* schema */oban_jobs AS job
  SET state = CASE WHEN job.attempt >= job.max_attempts THEN 'discarded' ELSE 'available' END::/* schema */oban_job_state,
      discarded_at = CASE WHEN job.attempt >= job.max_attempts THEN timezone('UTC', now()) ELSE job.discarded_at END,
      errors = job.errors || jsonb_build_object(
        'attempt', job.attempt, 'at', to_jsonb(now()),
        'error', 'its process died while it ran, on node ' || coalesce(job.attempted_by[1], 'unknown')),
      meta = job.meta || jsonb_build_object('rescued', CASE jsonb_typeof(job.meta -> 'rescued')
        WHEN 'number' THEN (job.meta ->> 'rescued')::numeric + 1 ELSE 1 END)
  FROM dead WHERE job.id = dead.id;
  GET DIAGNOSTICS rescued = ROW_COUNT;
  RETURN rescued;
END
$$;
