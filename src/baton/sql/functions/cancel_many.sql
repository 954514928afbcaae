-- cancel_many: what Oban's cancel of jobs does, durable also for those that run: a step is marked in its own row, an ordinary job
-- with Oban's own mark, and either ends cancelled whatever its attempt comes to. Ids ascending, unlike Oban's own statement.
-- Returns id and state before, of each job that had not ended.
CREATE OR REPLACE FUNCTION /* schema */baton_cancel_many(p_ids bigint[]) RETURNS TABLE (id bigint, state text)
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  ids bigint[];
  states text[];
BEGIN
  SELECT array_agg(locked.id), array_agg(locked.state::text) INTO ids, states FROM (
    SELECT job.id, job.state FROM /* schema */oban_jobs AS job
    WHERE job.id = ANY(p_ids) AND job.state::text IN ('executing', 'available', 'scheduled', 'retryable', 'suspended')
    ORDER BY job.id FOR UPDATE
  ) AS locked;

  UPDATE /* schema */workflow_nodes AS step SET cancel_requested_at = clock_timestamp(), cancel_reason = 'its job was cancelled'
  FROM unnest(ids, states) AS hit (id, state)
  WHERE step.job_id = hit.id AND hit.state = 'executing' AND step.state = 'released' AND step.cancel_requested_at IS NULL;
  UPDATE /* schema */oban_jobs AS job
  SET state = CASE job.state WHEN 'executing' THEN job.state ELSE 'cancelled' END,
      cancelled_at = CASE job.state WHEN 'executing' THEN job.cancelled_at ELSE timezone('UTC', now()) END,
      meta = job.meta || jsonb_build_object('cancel_attempted_at', timezone('UTC', clock_timestamp()))
  WHERE job.id = ANY(ids) AND job.state::text IN ('executing', 'available', 'scheduled', 'retryable', 'suspended');

  RETURN QUERY SELECT * FROM unnest(ids, states);
END
$$;
