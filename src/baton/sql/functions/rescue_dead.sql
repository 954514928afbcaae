-- rescue_dead: run jobs again whose process is dead, never those that are only slow. Any process calls it, as often as it likes; one
-- at a time does the work. Dead is a producer that has been silent for longer than it said it may be (60 seconds where it said
-- nothing, which is Oban's own rule for other nodes) while others were heard all that time. A claim is a sign of life as well.
-- A producer without a row gets one here, silent from now on: the table is unlogged, and empty after a crash of the server.
-- A job that was asked to end meanwhile ends cancelled, one without an attempt left is discarded, with a reason; attempts stay used.
-- p_rescue_after: seconds for a step's process without a row. Returns the jobs, in any of the three states.
CREATE OR REPLACE FUNCTION /* schema */baton_rescue_dead(p_rescue_after double precision) RETURNS bigint[]
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  moment timestamp := timezone('UTC', clock_timestamp());
  heard timestamp;
  dead bigint[];
  rescued bigint[];
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtext('baton.rescue'), hashtext('/* prefix */')) THEN
    RETURN '{}';
  END IF;

  -- The server's clock was set back. Who lives beats; for the others the silence begins now.
  UPDATE /* schema */oban_producers AS producer SET updated_at = moment WHERE producer.updated_at > moment + interval '1 minute';
  INSERT INTO /* schema */oban_producers (uuid, node, queue, meta, started_at, updated_at)
  SELECT /* schema */baton_claimant(job.attempted_by), coalesce(min(job.attempted_by[1]), 'unknown'), min(job.queue),
         jsonb_build_object('baton', jsonb_build_object('missing', true, 'rescue_after',
           -- Steps are run by Baton alone; anything else may be another node's.
           CASE WHEN bool_or(job.worker = 'baton.StepWorker') THEN p_rescue_after ELSE greatest(p_rescue_after, 60) END)),
         moment, moment
  FROM /* schema */oban_jobs AS job
  WHERE job.state = 'executing' AND NOT EXISTS (
    SELECT FROM /* schema */oban_producers AS producer WHERE producer.uuid = /* schema */baton_claimant(job.attempted_by))
  GROUP BY 1
  ON CONFLICT DO NOTHING;

  heard := /* schema */baton_heard(moment);
  IF heard IS NULL AND EXISTS (
    SELECT FROM /* schema */oban_producers AS producer WHERE producer.meta #>> '{baton,since}' IS NOT NULL
  ) THEN
    RETURN '{}';
  END IF;

  SELECT array_agg(locked.id) INTO dead FROM (
    SELECT job.id FROM /* schema */oban_jobs AS job
    JOIN /* schema */oban_producers AS producer ON producer.uuid = /* schema */baton_claimant(job.attempted_by)
    CROSS JOIN LATERAL (
      SELECT moment - make_interval(secs => coalesce((producer.meta #>> '{baton,rescue_after}')::double precision, 60)) AS since
    ) AS silent
    WHERE job.state = 'executing' AND producer.updated_at < silent.since
      AND (job.attempted_at IS NULL OR job.attempted_at < silent.since OR job.attempted_at > moment + interval '1 minute')
      AND (heard IS NULL OR heard <= silent.since)
    ORDER BY job.id FOR UPDATE OF job SKIP LOCKED
  ) AS locked;
  IF dead IS NULL THEN
    RETURN '{}';
  END IF;

  -- A statement of its own: it sees a heartbeat, an ack or a cancel that came while the one above looked.
  WITH saved AS (
    UPDATE /* schema */oban_jobs AS job
    SET state = fate.state::/* schema */oban_job_state,
        cancelled_at = CASE fate.state WHEN 'cancelled' THEN timezone('UTC', clock_timestamp()) ELSE job.cancelled_at END,
        discarded_at = CASE fate.state WHEN 'discarded' THEN timezone('UTC', clock_timestamp()) ELSE job.discarded_at END,
        errors = job.errors || jsonb_build_object('attempt', job.attempt, 'at', to_jsonb(clock_timestamp()), 'error',
          'the process running it died' || CASE fate.times WHEN 1 THEN '' ELSE ', ' || fate.times || ' times' END
          || '; it was on node ' || coalesce(job.attempted_by[1], 'unknown')),
        meta = job.meta || jsonb_build_object('rescued', fate.times)
    FROM (
      SELECT held.id, held.attempted_at,
             CASE jsonb_typeof(held.meta -> 'rescued') WHEN 'number' THEN (held.meta ->> 'rescued')::numeric + 1 ELSE 1 END AS times,
             CASE WHEN step.state = 'released' AND step.cancel_requested_at IS NOT NULL
                    OR (held.meta ->> 'cancel_attempted_at') > (to_jsonb(held.attempted_at) #>> '{}') COLLATE "C" THEN 'cancelled'
                  WHEN held.attempt >= held.max_attempts THEN 'discarded'
                  ELSE 'available' END AS state
      FROM /* schema */oban_jobs AS held
      JOIN /* schema */oban_producers AS producer ON producer.uuid = /* schema */baton_claimant(held.attempted_by)
      LEFT JOIN /* schema */workflow_nodes AS step ON step.job_id = held.id
      WHERE held.id = ANY(dead) AND producer.updated_at
        < moment - make_interval(secs => coalesce((producer.meta #>> '{baton,rescue_after}')::double precision, 60))
    ) AS fate
    WHERE job.id = fate.id AND job.state::text = 'executing' AND job.attempted_at IS NOT DISTINCT FROM fate.attempted_at
    RETURNING job.id
  )
  SELECT array_agg(saved.id ORDER BY saved.id) INTO rescued FROM saved;
  RETURN coalesce(rescued, '{}');
END
$$;
