-- state: of the row of workflow_nodes that is called step, as users see it. A settled or held step's is its own, and a released one's
-- is its job's, which is looked up for those alone. Its job is suspended while its run is paused, or for a moment.
CASE WHEN step.state <> 'released' THEN step.state ELSE coalesce((
  SELECT CASE WHEN job.state <> 'suspended' THEN job.state::text
              WHEN job.scheduled_at > timezone('UTC', now()) THEN 'scheduled' ELSE 'available' END
  FROM /* schema */oban_jobs AS job WHERE job.id = step.job_id
), 'cancelled') END
