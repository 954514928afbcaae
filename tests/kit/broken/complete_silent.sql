-- Broken complete: finishes a run without saying so.
-- instead of
    FROM /* schema */workflows AS workflow WHERE workflow.id = ANY(p_ids)
    RETURNING workflow_id, failed_steps
-- this
    FROM /* schema */workflows AS workflow WHERE false
    RETURNING workflow_id, failed_steps
