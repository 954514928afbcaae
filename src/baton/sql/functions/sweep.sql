-- sweep: make jobs follow their steps where the job row was locked at the time, and settle what could not be settled then.
-- Harmless at any moment, on any number of nodes at once, and empty-handed in a healthy system. Job rows are locked first,
-- workflows second, like everywhere. Returns the queues to wake here.
CREATE OR REPLACE FUNCTION /* schema */baton_sweep(p_local uuid[], p_origin text) RETURNS text[]
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  queues text[] := '{}';
  jobs bigint[];
  gone bigint[];
  step bigint[];
  one record;
  code text;
BEGIN
  SELECT array_agg(owing.id), array_agg(owing.job_id) INTO step, jobs
  FROM (SELECT node.id, node.job_id FROM /* schema */workflow_nodes AS node WHERE node.owed LIMIT 10000) AS owing;

  IF step IS NOT NULL THEN
    SELECT array_agg(node.id) INTO gone FROM unnest(step, jobs) AS node (id, job_id)
    WHERE NOT EXISTS (SELECT FROM /* schema */oban_jobs AS job WHERE job.id = node.job_id);
    jobs := /* schema */baton_take_jobs(jobs);

    PERFORM 1 FROM /* schema */workflows AS workflow WHERE workflow.id IN (
      SELECT node.workflow_id FROM /* schema */workflow_nodes AS node WHERE node.id = ANY(step)
    ) ORDER BY workflow.id FOR NO KEY UPDATE;

    queues := /* schema */baton_release_jobs(ARRAY(
      SELECT node.job_id FROM /* schema */workflow_nodes AS node
      WHERE node.job_id = ANY(jobs) AND node.owed AND node.state = 'released'));
    PERFORM /* schema */baton_cancel_jobs(ARRAY(
      SELECT node.job_id FROM /* schema */workflow_nodes AS node
      WHERE node.job_id = ANY(jobs) AND node.owed AND node.doomed));
    UPDATE /* schema */workflow_nodes AS node SET owed = false
    WHERE node.owed AND (node.job_id = ANY(jobs) OR node.id = ANY(gone));
  END IF;

  -- Repairs wait until nothing is owed: workflows are locked in one order, and these come one by one.
  FOR one IN
    SELECT repair.step_id, repair.state, repair.error FROM /* schema */workflow_repairs AS repair
    WHERE step IS NULL
    ORDER BY (SELECT node.workflow_id FROM /* schema */workflow_nodes AS node WHERE node.id = repair.step_id), repair.step_id
    LIMIT 100 FOR UPDATE SKIP LOCKED
  LOOP
    BEGIN
      queues := queues || /* schema */baton_settle(
        ARRAY[one.step_id], ARRAY[one.state], ARRAY[NULL::text], ARRAY[NULL::text]);
      DELETE FROM /* schema */workflow_repairs AS repair WHERE repair.step_id = one.step_id;
    EXCEPTION WHEN OTHERS THEN
      IF left(SQLSTATE, 2) IN ('40', '53', '55', '57') THEN
        RAISE;
      END IF;
      -- By way of a variable: the column is called sqlstate as well.
      code := SQLSTATE;
      UPDATE /* schema */workflow_repairs AS repair SET sqlstate = code, error = SQLERRM
      WHERE repair.step_id = one.step_id;
    END;
  END LOOP;

  PERFORM /* schema */baton_wake(queues, p_local, p_origin);
  RETURN queues;
END
$$;
