-- take_jobs: lock those job rows that nobody else holds, and say which.
-- Whoever calls this holds workflow rows, and must never wait for a job row: Oban's own statements lock jobs first and come
-- to the workflow through the trigger. What is not taken is owed, and the sweep finds it.
CREATE OR REPLACE FUNCTION /* schema */baton_take_jobs(p_ids bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN ARRAY(
    SELECT job.id FROM /* schema */oban_jobs AS job WHERE job.id = ANY(p_ids) ORDER BY job.id FOR UPDATE SKIP LOCKED
  );
END
$$;
