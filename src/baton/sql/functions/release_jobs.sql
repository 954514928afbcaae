-- release_jobs: let the jobs of released steps run, now or when they are scheduled for.
-- Takes ids of jobs that this transaction has locked. Returns the queues in which one became available, with repeats.
CREATE OR REPLACE FUNCTION /* schema */baton_release_jobs(p_ids bigint[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  queues text[];
BEGIN
  WITH released AS (
    UPDATE /* schema */oban_jobs AS job
    SET state = CASE WHEN job.scheduled_at > timezone('UTC', now()) THEN 'scheduled' ELSE 'available' END
                ::/* schema */oban_job_state
    WHERE job.id = ANY(p_ids) AND job.state::text = 'suspended'
    RETURNING job.queue, job.state
  )
  SELECT coalesce(array_agg(queue) FILTER (WHERE state = 'available'), '{}') INTO queues FROM released;
  RETURN queues;
END
$$;
