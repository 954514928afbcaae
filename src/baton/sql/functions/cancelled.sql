-- cancelled: which of these running jobs were cancelled meanwhile, should the notification of it have been lost.
CREATE OR REPLACE FUNCTION /* schema */baton_cancelled(p_jobs bigint[]) RETURNS bigint[] LANGUAGE plpgsql /* pinned */ AS $$
BEGIN
  RETURN ARRAY(
    SELECT step.job_id FROM /* schema */workflow_nodes AS step
    WHERE step.job_id = ANY(p_jobs) AND step.state = 'released' AND step.cancel_requested_at IS NOT NULL
    UNION
    SELECT job.id FROM /* schema */oban_jobs AS job
    WHERE job.id = ANY(p_jobs) AND job.state::text = 'executing'
      AND (job.meta ->> 'cancel_attempted_at') > (to_jsonb(job.attempted_at) #>> '{}') COLLATE "C");
END
$$;
