-- release: count settled steps off their dependents, and release those left waiting on nothing.
-- p_ids: steps that settled in this transaction, their workflows locked. Returns queues as release_jobs does.
-- Count down, do not look around: "no unsettled dependency is visible" loses the release when two settle at once.
CREATE OR REPLACE FUNCTION /* schema */baton_release(p_ids bigint[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  dependents bigint[];
  counts integer[];
  jobs bigint[];
  ours bigint[] := '{}';
BEGIN
  SELECT array_agg(step.id), array_agg(counted.settled),
         array_agg(step.job_id) FILTER (WHERE step.waiting_on = counted.settled)
  INTO dependents, counts, jobs
  FROM (
    SELECT edge.dependent_id AS id, count(*)::integer AS settled
    FROM /* schema */workflow_edges AS edge WHERE edge.dependency_id = ANY(p_ids) GROUP BY edge.dependent_id
  ) AS counted
  -- OFFSET keeps this a look-up for each of them. While the table is small, reading it all seems cheaper, and the plan stays.
  CROSS JOIN LATERAL (
    SELECT node.id, node.job_id, node.waiting_on, node.state FROM /* schema */workflow_nodes AS node
    WHERE node.id = counted.id OFFSET 0
  ) AS step
  WHERE step.state = 'held';

  IF dependents IS NULL THEN
    RETURN '{}';
  END IF;
  IF jobs IS NOT NULL THEN
    ours := /* schema */baton_take_jobs(jobs);
  END IF;

  UPDATE /* schema */workflow_nodes AS step
  SET waiting_on = step.waiting_on - counted.settled,
      state = CASE WHEN step.waiting_on = counted.settled THEN 'released' ELSE 'held' END
  FROM unnest(dependents, counts) AS counted (id, settled)
  WHERE step.id = counted.id AND step.state = 'held';

  IF cardinality(ours) < cardinality(jobs) THEN
    PERFORM /* schema */baton_owe(jobs, ours);
  END IF;
  IF ours = '{}' THEN
    RETURN '{}';
  END IF;
  RETURN /* schema */baton_release_jobs(ours);
END
$$;
