-- Broken prune: deletes what has finished, though its jobs are there and somebody may be reviving it.
-- instead of
 FOR UPDATE SKIP LOCKED
-- this
-- instead of
      AND NOT EXISTS (SELECT FROM /* schema */workflow_nodes AS step JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
                      WHERE step.workflow_id = workflow.id)
-- this
