-- store: keep a value for a step before its ack, in a commit of its own, only for the attempt that holds the job.
-- The first value under a key stays. Returns whether the attempt still holds its job.
CREATE OR REPLACE FUNCTION /* schema */baton_store(p_job_id bigint, p_attempted_at timestamp, p_key text, p_value text)
RETURNS boolean LANGUAGE plpgsql /* pinned */ AS $$
BEGIN
  PERFORM 1 FROM /* schema */oban_jobs AS job
  WHERE job.id = p_job_id AND job.state::text = 'executing' AND job.attempted_at = p_attempted_at FOR SHARE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO /* schema */workflow_checkpoints (step_id, key, value, attempt)
  SELECT step.id, p_key, jsonb_build_object('value', p_value::jsonb), job.attempt
  FROM /* schema */workflow_nodes AS step JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
  WHERE step.job_id = p_job_id
  ON CONFLICT (step_id, key) DO NOTHING;
  RETURN true;
END
$$;
