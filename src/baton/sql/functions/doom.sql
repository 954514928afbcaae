-- doom: cancel every held step that can no longer be satisfied, to any depth, with its job.
-- p_ids: steps that settled cancelled or discarded in this transaction, their workflows locked. Returns the doomed steps' ids.
-- A loop, a level a turn: a recursive statement would see the rows as they were before it began.
CREATE OR REPLACE FUNCTION /* schema */baton_doom(p_ids bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  level bigint[] := p_ids;
  reasons text[];
  jobs bigint[];
  ours bigint[];
  doomed bigint[] := '{}';
BEGIN
  LOOP
    SELECT array_agg(hit.id), array_agg(hit.job_id), array_agg(hit.reason) INTO level, jobs, reasons
    FROM (
      SELECT DISTINCT ON (step.id) step.id, step.job_id,
             'its dependency ' || quote_literal(cause.name) || ' was ' || cause.state AS reason
      FROM /* schema */workflow_edges AS edge
      -- OFFSET keeps these look-ups; see release.
      CROSS JOIN LATERAL (
        SELECT node.name, node.state, node.position FROM /* schema */workflow_nodes AS node
        WHERE node.id = edge.dependency_id OFFSET 0
      ) AS cause
      CROSS JOIN LATERAL (
        SELECT node.id, node.job_id, node.state, node.ignore_cancelled, node.ignore_discarded
        FROM /* schema */workflow_nodes AS node WHERE node.id = edge.dependent_id OFFSET 0
      ) AS step
      WHERE edge.dependency_id = ANY(level)
        AND step.state = 'held'
        AND NOT CASE cause.state WHEN 'cancelled' THEN step.ignore_cancelled
                                 WHEN 'discarded' THEN step.ignore_discarded
                                 ELSE true END
      ORDER BY step.id, cause.position
    ) AS hit;
    EXIT WHEN level IS NULL;

    ours := /* schema */baton_take_jobs(jobs);

    UPDATE /* schema */workflow_nodes AS step
    SET state = 'cancelled', doomed = true, waiting_on = 0, error = hit.reason, settled_at = clock_timestamp()
    FROM unnest(level, reasons) AS hit (id, reason)
    WHERE step.id = hit.id AND step.state = 'held';

    IF cardinality(ours) < cardinality(jobs) THEN
      PERFORM /* schema */baton_owe(jobs, ours);
    END IF;
    PERFORM /* schema */baton_cancel_jobs(ours);
    doomed := doomed || level;
  END LOOP;
  RETURN doomed;
END
$$;
