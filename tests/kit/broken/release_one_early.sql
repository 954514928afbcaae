-- Broken release: lets go of what waits on one more.
-- instead of
         array_agg(step.job_id) FILTER (WHERE step.waiting_on = counted.settled),
-- this
         array_agg(step.job_id) FILTER (WHERE step.waiting_on <= counted.settled + 1),
-- instead of
  SET waiting_on = step.waiting_on - counted.settled,
      state = CASE WHEN step.waiting_on = counted.settled THEN 'released' ELSE 'held' END
-- this
  SET waiting_on = CASE WHEN step.waiting_on <= counted.settled + 1 THEN 0 ELSE step.waiting_on - counted.settled END,
      state = CASE WHEN step.waiting_on <= counted.settled + 1 THEN 'released' ELSE 'held' END
