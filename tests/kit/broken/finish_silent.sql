-- Broken finish: finishes a run without saying so.
-- instead of
    FROM /* schema */workflows AS workflow WHERE workflow.id = ANY(finished);
    INSERT INTO /* schema */workflow_deliveries
-- this
    FROM /* schema */workflows AS workflow WHERE false;
    INSERT INTO /* schema */workflow_deliveries
