-- Broken complete: says it twice.
-- instead of
    FROM /* schema */workflows AS workflow WHERE workflow.id = ANY(p_ids)
    RETURNING workflow_id, failed_steps
-- this
    FROM /* schema */workflows AS workflow CROSS JOIN generate_series(1, 2) WHERE workflow.id = ANY(p_ids)
    RETURNING workflow_id, failed_steps
