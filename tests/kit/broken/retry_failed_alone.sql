-- Broken retry: revives what failed, and leaves what had come of it as it is.
-- instead of
    WHERE step.workflow_id = p_workflow AND step.state IN ('cancelled', 'discarded')
    UNION
    SELECT edge.dependent_id FROM reached JOIN /* schema */workflow_edges AS edge ON edge.dependency_id = reached.id
-- this
    WHERE step.workflow_id = p_workflow AND step.state IN ('cancelled', 'discarded')
    UNION
    SELECT reached.id FROM reached WHERE false
