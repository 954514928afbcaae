-- Broken prune: takes what had finished when it looked, whatever became of it meanwhile, and whether its jobs are gone.
-- instead of
FOR UPDATE SKIP LOCKED
-- this
-- instead of
      AND NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
                      WHERE step.workflow_id = workflow.id)
-- this
