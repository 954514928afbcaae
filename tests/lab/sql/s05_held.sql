-- S5 held: a step that waits for nothing, or one that was let go and waits.
SELECT step.workflow_id, step.name, step.state || ' and waits on ' || step.waiting_on
FROM workflow_nodes AS step WHERE (step.state = 'held') <> (step.waiting_on > 0)
