-- read_step_ids: ids of the steps of one workflow, in the order they were added. Params: id.
SELECT step.id FROM /* schema */workflow_nodes AS step WHERE step.workflow_id = %(id)s ORDER BY step.position
