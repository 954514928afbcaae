-- cancel_jobs: end the jobs of steps that were doomed. Takes ids of jobs that this transaction has locked.
CREATE OR REPLACE FUNCTION /* schema */baton_cancel_jobs(p_ids bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE /* schema */oban_jobs AS job
  SET state = 'cancelled', cancelled_at = timezone('UTC', now())
  WHERE job.id = ANY(p_ids) AND job.state::text IN ('suspended', 'scheduled', 'available', 'retryable');
END
$$;
