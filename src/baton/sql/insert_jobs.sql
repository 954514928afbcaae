-- insert_jobs: what Oban's insert of one job does, for many in one statement, with one notification a queue.
-- Params: an array for each column of Oban's, one element a job; tags as JSON arrays. Returns: a row for each, in the order given,
-- for ids are given out in the order of the SELECT: id, inserted_at, queue, scheduled_at, state.
WITH inserted AS (
  INSERT INTO /* schema */oban_jobs (args, inserted_at, max_attempts, meta, priority, queue, scheduled_at, state, tags, worker)
  SELECT job.args, coalesce(job.inserted_at, timezone('UTC', now())), job.max_attempts, job.meta, job.priority, job.queue,
         coalesce(job.scheduled_at, timezone('UTC', now())),
         CASE WHEN job.state = 'available' AND job.scheduled_at IS NOT NULL THEN 'scheduled'
              ELSE job.state END::/* schema */oban_job_state,
         ARRAY(SELECT jsonb_array_elements_text(job.tags)), job.worker
  FROM unnest(%(args)s::jsonb[], %(inserted_at)s::timestamp[], %(max_attempts)s::integer[], %(meta)s::jsonb[],
              %(priorities)s::integer[], %(queues)s::text[], %(scheduled_at)s::timestamp[], %(states)s::text[], %(tags)s::jsonb[],
              %(workers)s::text[]) WITH ORDINALITY
       AS job (args, inserted_at, max_attempts, meta, priority, queue, scheduled_at, state, tags, worker, place)
  ORDER BY job.place
  RETURNING id, inserted_at, queue, scheduled_at, state
), told AS (
  SELECT count(pg_notify('/* prefix */.oban_insert', json_build_object('queue', ready.queue)::text)) AS queues
  FROM (SELECT DISTINCT inserted.queue FROM inserted WHERE inserted.state = 'available') AS ready
)
SELECT inserted.id, inserted.inserted_at, inserted.queue, inserted.scheduled_at, inserted.state
FROM inserted, told ORDER BY inserted.id
