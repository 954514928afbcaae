-- find_steps_of_runs: ids of the steps of some workflows, in the order they were added. Params: ids uuid[].
SELECT step.id FROM /* schema */workflow_nodes AS step WHERE step.workflow_id = ANY(%(ids)s::uuid[]) ORDER BY step.workflow_id, step.position
