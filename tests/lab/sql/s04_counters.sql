-- S4 counters: what a step or a run counts is not what its edges or its steps say.
SELECT step.workflow_id, step.name, 'waits on ' || step.waiting_on || ' of ' || count(dependency.id)
FROM workflow_nodes AS step
LEFT JOIN workflow_edges AS edge ON edge.dependent_id = step.id
LEFT JOIN workflow_nodes AS dependency ON dependency.id = edge.dependency_id AND dependency.state IN ('held', 'released')
WHERE step.state IN ('held', 'released')
GROUP BY step.id HAVING step.waiting_on <> count(dependency.id)
UNION ALL
SELECT workflow.id, NULL, 'counts ' || workflow.unsettled || ' unsettled and ' || workflow.failed || ' failed, not '
       || count(*) FILTER (WHERE step.state IN ('held', 'released')) || ' and '
       || count(*) FILTER (WHERE step.state IN ('cancelled', 'discarded'))
FROM workflows AS workflow LEFT JOIN workflow_nodes AS step ON step.workflow_id = workflow.id
GROUP BY workflow.id
HAVING workflow.unsettled <> count(*) FILTER (WHERE step.state IN ('held', 'released'))
    OR workflow.failed <> count(*) FILTER (WHERE step.state IN ('cancelled', 'discarded'))
