-- doom: end every held step that can no longer be satisfied, to any depth, with its job: cancelled, or skipped like its dependency.
-- p_ids: steps that settled other than completed in this transaction, their workflows locked. Returns the doomed steps' ids.
-- A loop, a level a turn: a recursive statement would see the rows as they were before it began.
CREATE OR REPLACE FUNCTION /* schema */baton_doom(p_ids bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  level bigint[] := p_ids;
  reasons text[];
  causes text[];
  jobs bigint[];
  ours bigint[];
  doomed bigint[] := '{}';
BEGIN
  LOOP
    SELECT array_agg(hit.id), array_agg(hit.job_id), array_agg(hit.reason), array_agg(hit.cause)
    INTO level, jobs, reasons, causes
    FROM (
      SELECT DISTINCT ON (step.id) step.id, step.job_id, cause.state AS cause,
             'its dependency ' || quote_literal(cause.name) || ' was ' || cause.state AS reason
      FROM /* schema */workflow_edges AS edge
      -- OFFSET keeps these look-ups; see release.
      CROSS JOIN LATERAL (
        SELECT node.name, node.state, node.position FROM /* schema */workflow_nodes AS node
        WHERE node.id = edge.dependency_id OFFSET 0
      ) AS cause
      CROSS JOIN LATERAL (
        SELECT node.id, node.job_id, node.state, node.runs_on, node.ignore_cancelled, node.ignore_discarded
        FROM /* schema */workflow_nodes AS node WHERE node.id = edge.dependent_id OFFSET 0
      ) AS step
      WHERE edge.dependency_id = ANY(level)
        AND step.state = 'held'
        AND step.runs_on = 'success'
        AND NOT CASE cause.state WHEN 'cancelled' THEN step.ignore_cancelled
                                 WHEN 'skipped' THEN step.ignore_cancelled
                                 WHEN 'discarded' THEN step.ignore_discarded
                                 ELSE true END
      ORDER BY step.id, cause.state = 'skipped', cause.position
    ) AS hit;
    EXIT WHEN level IS NULL;

    ours := /* schema */baton_take_jobs(jobs);

    WITH ended AS (
      UPDATE /* schema */workflow_nodes AS step
      SET state = CASE hit.cause WHEN 'skipped' THEN 'skipped' ELSE 'cancelled' END, doomed = true, waiting_on = 0,
          error = hit.reason, settled_at = clock_timestamp()
      FROM unnest(level, reasons, causes) AS hit (id, reason, cause)
      WHERE step.id = hit.id AND step.state = 'held'
      RETURNING step.id, step.workflow_id, step.hooked, hit.cause, hit.reason
    )
    INSERT INTO /* schema */workflow_deliveries (workflow_id, generation, step_id, cause, reason)
    SELECT workflow.id, workflow.generation, ended.id, ended.cause, ended.reason
    FROM ended JOIN /* schema */workflows AS workflow ON workflow.id = ended.workflow_id
    WHERE ended.hooked AND ended.cause <> 'skipped';

    IF cardinality(ours) < cardinality(jobs) THEN
      PERFORM /* schema */baton_owe(jobs, ours);
    END IF;
    PERFORM /* schema */baton_cancel_jobs(ours);
    doomed := doomed || level;
  END LOOP;
  RETURN doomed;
END
$$;
