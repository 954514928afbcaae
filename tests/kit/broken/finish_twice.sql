-- Broken finish: says it twice.
-- instead of
    FROM /* schema */workflows AS workflow WHERE workflow.id = ANY(finished);
    INSERT INTO /* schema */workflow_deliveries
-- this
    FROM /* schema */workflows AS workflow CROSS JOIN generate_series(1, 2) WHERE workflow.id = ANY(finished);
    INSERT INTO /* schema */workflow_deliveries
