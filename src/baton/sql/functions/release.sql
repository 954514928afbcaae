-- release: count settled steps off their dependents, and let go of those left waiting on nothing: they are released, or skipped
-- if they run only after a failure and there was none.
-- p_ids: steps that settled in this transaction, their workflows locked. Returns queues as release_jobs does, and the steps skipped.
-- Count down, do not look around: "no unsettled dependency is visible" loses the release when two settle at once.
CREATE OR REPLACE FUNCTION /* schema */baton_release(p_ids bigint[], OUT queues text[], OUT skipped bigint[])
LANGUAGE plpgsql AS $$
DECLARE
  dependents bigint[];
  counts integer[];
  jobs bigint[];
  conditional bigint[];
  ours bigint[] := '{}';
  dead bigint[];
BEGIN
  queues := '{}';
  skipped := '{}';
  SELECT array_agg(step.id), array_agg(counted.settled),
         array_agg(step.job_id) FILTER (WHERE step.waiting_on = counted.settled),
         array_agg(step.id) FILTER (WHERE step.waiting_on = counted.settled AND step.runs_on = 'failure')
  INTO dependents, counts, jobs, conditional
  FROM (
    SELECT edge.dependent_id AS id, count(*)::integer AS settled
    FROM /* schema */workflow_edges AS edge WHERE edge.dependency_id = ANY(p_ids) GROUP BY edge.dependent_id
  ) AS counted
  -- OFFSET keeps this a look-up for each of them. While the table is small, reading it all seems cheaper, and the plan stays.
  CROSS JOIN LATERAL (
    SELECT node.id, node.job_id, node.waiting_on, node.state, node.runs_on FROM /* schema */workflow_nodes AS node
    WHERE node.id = counted.id OFFSET 0
  ) AS step
  WHERE step.state = 'held';

  IF dependents IS NULL THEN
    RETURN;
  END IF;
  IF jobs IS NOT NULL THEN
    ours := /* schema */baton_take_jobs(jobs);
  END IF;
  IF conditional IS NOT NULL THEN
    skipped := ARRAY(
      SELECT step.id FROM unnest(conditional) AS step (id) WHERE NOT EXISTS (
        SELECT FROM /* schema */workflow_edges AS edge
        JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
        WHERE edge.dependent_id = step.id AND dependency.state IN ('cancelled', 'discarded')));
  END IF;

  UPDATE /* schema */workflow_nodes AS step
  SET waiting_on = step.waiting_on - counted.settled,
      state = CASE WHEN step.waiting_on = counted.settled THEN 'released' ELSE 'held' END,
      released_at = CASE WHEN step.waiting_on = counted.settled THEN clock_timestamp() END
  FROM unnest(dependents, counts) AS counted (id, settled)
  WHERE step.id = counted.id AND step.state = 'held';

  IF skipped <> '{}' THEN
    UPDATE /* schema */workflow_nodes AS step
    SET state = 'skipped', doomed = true, error = 'none of its dependencies failed', settled_at = clock_timestamp()
    WHERE step.id = ANY(skipped) AND step.state = 'released';
    dead := ARRAY(SELECT step.job_id FROM /* schema */workflow_nodes AS step WHERE step.id = ANY(skipped));
    PERFORM /* schema */baton_cancel_jobs(ARRAY(SELECT unnest(dead) INTERSECT SELECT unnest(ours)));
  END IF;
  IF cardinality(ours) < cardinality(jobs) THEN
    PERFORM /* schema */baton_owe(jobs, ours);
  END IF;
  IF ours <> '{}' THEN
    queues := /* schema */baton_release_jobs(ours);
  END IF;
END
$$;
