-- reclaim: return jobs to their queue that a producer claimed without learning of it: the commit came through, its answer did not.
-- p_known: jobs the producer does know of. Returns how many went back.
CREATE OR REPLACE FUNCTION /* schema */baton_reclaim(p_queue text, p_producer uuid, p_known bigint[]) RETURNS bigint
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  returned bigint;
BEGIN
  WITH lost AS (
    SELECT job.id FROM /* schema */oban_jobs AS job
    WHERE job.state = 'executing' AND job.queue = p_queue AND job.attempted_by[2] = p_producer::text
      AND job.id <> ALL(p_known)
    ORDER BY job.id FOR UPDATE
  )
  UPDATE /* schema */oban_jobs AS job SET state = 'available', attempt = job.attempt - 1
  FROM lost WHERE job.id = lost.id;
  GET DIAGNOSTICS returned = ROW_COUNT;
  RETURN returned;
END
$$;
