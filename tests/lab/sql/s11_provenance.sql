-- S11 provenance: a stored value is not what the step makes of the stored values of its dependencies; see schedule.value_of.
SELECT step.workflow_id, step.name, 'its value does not come from the values of its dependencies'
FROM workflow_nodes AS step JOIN workflows AS workflow ON workflow.id = step.workflow_id
WHERE step.state = 'completed' AND step.result ->> 'value' <> encode(sha256(convert_to(
  workflow.name || '/' || step.name || '/' || coalesce((
    SELECT string_agg(dependency.name || '=' || coalesce(dependency.result ->> 'value', ''), ',' ORDER BY dependency.name COLLATE "C")
    FROM workflow_edges AS edge JOIN workflow_nodes AS dependency ON dependency.id = edge.dependency_id
    WHERE edge.dependent_id = step.id), ''), 'UTF8')), 'hex')
