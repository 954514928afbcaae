-- Broken settle: locks the workflows in the order in which the caller named their steps.
-- instead of
  PERFORM 1 FROM /* schema */workflows AS workflow
  WHERE workflow.id IN (SELECT step.workflow_id FROM /* schema */workflow_nodes AS step WHERE step.id = ANY(p_ids))
  ORDER BY workflow.id FOR NO KEY UPDATE;
-- this
  DECLARE
    one bigint;
  BEGIN
    FOREACH one IN ARRAY p_ids LOOP
      PERFORM 1 FROM /* schema */workflows AS workflow
      WHERE workflow.id = (SELECT step.workflow_id FROM /* schema */workflow_nodes AS step WHERE step.id = one)
      FOR NO KEY UPDATE;
    END LOOP;
  END;
