-- rescue: what Oban's lifeline does: rescue_dead, and discard those that are available with no attempt left, which nobody would claim.
-- p_rescue_after: as there. Returns how many there were.
CREATE OR REPLACE FUNCTION /* schema */baton_rescue(p_rescue_after double precision) RETURNS bigint
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  rescued bigint[] := /* schema */baton_rescue_dead(p_rescue_after);
  exhausted bigint;
BEGIN
  WITH spent AS (
    SELECT job.id FROM /* schema */oban_jobs AS job
    WHERE job.state = 'available' AND job.attempt >= job.max_attempts ORDER BY job.id FOR UPDATE SKIP LOCKED
  )
  UPDATE /* schema */oban_jobs AS job
  SET state = 'discarded', discarded_at = timezone('UTC', clock_timestamp()),
      errors = job.errors || jsonb_build_object(
        'attempt', job.attempt, 'at', to_jsonb(clock_timestamp()), 'error', 'it was to run again with no attempt left')
  FROM spent WHERE job.id = spent.id;
  GET DIAGNOSTICS exhausted = ROW_COUNT;
  RETURN cardinality(rescued) + exhausted;
END
$$;
