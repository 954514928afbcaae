-- Broken retry: revives what failed and leaves what had come of it as it is.
-- instead of
    UNION
    SELECT edge.dependent_id FROM reached JOIN /* schema */workflow_edges AS edge ON edge.dependency_id = reached.id
-- this
