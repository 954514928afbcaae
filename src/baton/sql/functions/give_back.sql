-- give_back: return claimed jobs that never started, with their attempt, to their queue.
-- Fenced like an ack. Returns how many went back.
CREATE OR REPLACE FUNCTION /* schema */baton_give_back(p_ids bigint[], p_attempted_ats timestamp[]) RETURNS bigint
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  returned bigint;
BEGIN
  WITH fenced AS (
    SELECT job.id FROM unnest(p_ids, p_attempted_ats) AS attempt (id, attempted_at)
    JOIN /* schema */oban_jobs AS job ON job.id = attempt.id
    WHERE job.state::text = 'executing' AND job.attempted_at = attempt.attempted_at
    ORDER BY job.id FOR UPDATE OF job
  )
  UPDATE /* schema */oban_jobs AS job SET state = 'available', attempt = job.attempt - 1
  FROM fenced WHERE job.id = fenced.id;
  GET DIAGNOSTICS returned = ROW_COUNT;
  RETURN returned;
END
$$;
