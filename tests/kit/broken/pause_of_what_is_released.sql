-- Broken on_jobs_updated: what is released or tried again while its run is paused starts.
-- instead of
workflow.id = step.workflow_id) IS NOT NULL
-- this
workflow.id = step.workflow_id) IS NOT NULL AND false
