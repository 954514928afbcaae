-- reconcile: find live steps that no longer agree with their jobs, because no trigger was looking when those changed, and make
-- them follow: an update that changes nothing lets the trigger compare again. Work is that of the live workflows' unsettled
-- steps. Returns how many were found; in a healthy system, none.
CREATE OR REPLACE FUNCTION /* schema */baton_reconcile() RETURNS bigint
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  jobs bigint[];
  late bigint[];
  gone bigint[];
BEGIN
  SELECT array_agg(step.job_id) FILTER (WHERE job.id IS NOT NULL AND job.state <> 'suspended'),
         array_agg(step.id) FILTER (WHERE job.state = 'suspended'),
         array_agg(step.id) FILTER (WHERE job.id IS NULL)
  INTO jobs, late, gone
  FROM /* schema */workflows AS workflow
  JOIN /* schema */workflow_nodes AS step ON step.workflow_id = workflow.id
  LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
  WHERE workflow.finished_at IS NULL AND step.state IN ('held', 'released') AND NOT step.owed
    AND (job.id IS NULL OR job.state IN ('completed', 'cancelled', 'discarded') OR CASE
           WHEN step.state = 'held' THEN job.state <> 'suspended'
           WHEN step.cancel_requested_at IS NOT NULL THEN job.state <> 'executing'
           WHEN workflow.paused_at IS NOT NULL THEN job.state IN ('available', 'scheduled', 'retryable')
           ELSE job.state = 'suspended' END);

  IF jobs IS NOT NULL THEN
    jobs := /* schema */baton_take_jobs(jobs);
    UPDATE /* schema */oban_jobs AS job SET state = job.state WHERE job.id = ANY(jobs);
  END IF;
  IF gone IS NOT NULL THEN
    PERFORM /* schema */baton_follow(gone, array_fill('cancelled'::text, ARRAY[cardinality(gone)]), 'its job was deleted');
  END IF;
  IF late IS NOT NULL THEN
    UPDATE /* schema */workflow_nodes AS step SET owed = true WHERE step.id = ANY(late) AND step.state = 'released';
  END IF;
  RETURN coalesce(cardinality(jobs), 0) + coalesce(cardinality(gone), 0) + coalesce(cardinality(late), 0);
END
$$;
