-- on_jobs_truncated: as on_jobs_deleted, for all jobs at once. Their ids may be given out again, so no step keeps one.
CREATE OR REPLACE FUNCTION /* schema */baton_on_jobs_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp /* pinned */ AS $$
DECLARE
  orphans bigint[];
BEGIN
  SELECT array_agg(step.id) INTO orphans FROM /* schema */workflow_nodes AS step WHERE step.state IN ('held', 'released');
  IF orphans IS NOT NULL THEN
    PERFORM /* schema */baton_follow(orphans, array_fill('cancelled'::text, ARRAY[cardinality(orphans)]),
                                     'its job was deleted');
  END IF;
  UPDATE /* schema */workflow_nodes AS step SET job_id = -step.id WHERE step.job_id > 0;
  RETURN NULL;
END
$$;
