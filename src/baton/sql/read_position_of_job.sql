-- read_position_of_job: where in one workflow the step of a job is. Params: id, job_id. At most one row.
SELECT step.position FROM /* schema */workflow_nodes AS step
WHERE step.job_id = %(job_id)s AND step.workflow_id = %(id)s
