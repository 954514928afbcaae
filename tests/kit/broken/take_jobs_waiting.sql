-- Broken: waits for a job row while workflow rows are held.
CREATE OR REPLACE FUNCTION /* schema */baton_take_jobs(p_ids bigint[]) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT coalesce(array_agg(taken.id), '{}') FROM (
    SELECT job.id FROM /* schema */oban_jobs AS job WHERE job.id = ANY(p_ids) ORDER BY job.id FOR UPDATE
  ) AS taken
$$;
