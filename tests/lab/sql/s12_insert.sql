-- S12 insert: of a run, its steps, their edges and their jobs, all are there or none.
SELECT workflow.id, NULL, 'has ' || count(step.id) || ' of ' || workflow.steps || ' steps'
FROM workflows AS workflow LEFT JOIN workflow_nodes AS step ON step.workflow_id = workflow.id
GROUP BY workflow.id HAVING count(step.id) <> workflow.steps
UNION ALL
SELECT step.workflow_id, step.name, 'has ' || count(edge.dependency_id) || ' of ' || cardinality(step.deps) || ' edges'
FROM workflow_nodes AS step LEFT JOIN workflow_edges AS edge ON edge.dependent_id = step.id
GROUP BY step.id HAVING count(edge.dependency_id) <> cardinality(step.deps)
UNION ALL
SELECT step.workflow_id, step.name, 'belongs to no run'
FROM workflow_nodes AS step WHERE NOT EXISTS (SELECT FROM workflows AS workflow WHERE workflow.id = step.workflow_id)
UNION ALL
SELECT (job.meta ->> 'workflow_id')::uuid, job.meta ->> 'workflow_name', 'job ' || job.id || ' has no step'
FROM oban_jobs AS job
WHERE job.meta ? 'workflow_id' AND NOT EXISTS (SELECT FROM workflow_nodes AS step WHERE step.job_id = job.id)
UNION ALL
SELECT flow.run, NULL, 'was inserted as ' || flow.tag || ' and is not there'
FROM lab.flows AS flow
WHERE flow.run IS NOT NULL AND flow.prune_called_at IS NULL
  AND NOT EXISTS (SELECT FROM workflows AS workflow WHERE workflow.id = flow.run)
