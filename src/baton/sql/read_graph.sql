-- read_graph: the steps of one workflow as they are drawn, in the order they were added. Params: id. Returns: name, deps, state,
-- function, position.
SELECT step.name, step.deps,
       /* state */,
       step.function, step.position
FROM /* schema */workflow_nodes AS step
WHERE step.workflow_id = %(id)s
ORDER BY step.position
