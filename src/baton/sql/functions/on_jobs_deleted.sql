-- on_jobs_deleted: a job that is deleted before its step settled takes the step with it, as cancelled.
CREATE OR REPLACE FUNCTION /* schema */baton_on_jobs_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp /* pinned */ AS $$
DECLARE
  orphans bigint[];
BEGIN
  SELECT array_agg(step.id) INTO orphans
  FROM changed AS job JOIN /* schema */workflow_nodes AS step ON step.job_id = job.id
  WHERE step.state IN ('held', 'released');
  IF orphans IS NOT NULL THEN
    PERFORM /* schema */baton_follow(orphans, array_fill('cancelled'::text, ARRAY[cardinality(orphans)]),
                                     'its job was deleted');
  END IF;
  RETURN NULL;
END
$$;
