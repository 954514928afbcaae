-- skip: end the steps of a run that was revived or copied and that what had settled before keeps from running: those behind a skipped
-- step, and those that run only after a failure and find none. The caller has locked the run, and its jobs are this transaction's.
-- Returns the queues in which jobs became available, with repeats.
CREATE OR REPLACE FUNCTION /* schema */baton_skip(p_workflow uuid) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  idle bigint[];
  jobs bigint[];
  reasons text[];
  queues text[];
BEGIN
  SELECT array_agg(step.id), array_agg(step.job_id),
         array_agg(CASE step.runs_on WHEN 'failure' THEN 'none of its dependencies failed'
                                     ELSE 'its dependency ' || quote_literal(found.skipped) || ' was skipped' END)
  INTO idle, jobs, reasons
  FROM /* schema */workflow_nodes AS step
  CROSS JOIN LATERAL (
    SELECT min(dependency.name) FILTER (WHERE dependency.state = 'skipped') AS skipped,
           count(*) FILTER (WHERE dependency.state IN ('cancelled', 'discarded')) AS failed
    FROM /* schema */workflow_edges AS edge
    JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
    WHERE edge.dependent_id = step.id
  ) AS found
  WHERE step.workflow_id = p_workflow AND step.state IN ('held', 'released')
    AND CASE step.runs_on WHEN 'success' THEN found.skipped IS NOT NULL AND NOT step.ignore_cancelled
                          WHEN 'failure' THEN step.state = 'released' AND found.failed = 0 END;
  IF idle IS NULL THEN
    RETURN '{}';
  END IF;
  queues := /* schema */baton_settle(
    idle, array_fill('skipped'::text, ARRAY[cardinality(idle)]), array_fill(NULL::text, ARRAY[cardinality(idle)]), reasons);
  UPDATE /* schema */workflow_nodes AS step SET doomed = true, attempt = NULL, started_at = NULL
  WHERE step.id = ANY(idle) AND step.state = 'skipped';
  PERFORM /* schema */baton_cancel_jobs(jobs);
  RETURN queues;
END
$$;
