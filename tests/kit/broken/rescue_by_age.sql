-- Broken rescue_dead: takes for dead who has been at one job for long, however often it is heard.
-- instead of
greatest(producer.updated_at, job.attempted_at) < silent.since
-- this
job.attempted_at < silent.since
-- instead of
      WHERE held.id = ANY(dead) AND producer.updated_at
        < moment - make_interval(secs => coalesce((producer.meta #>> '{baton,rescue_after}')::double precision, 60))
-- this
      WHERE held.id = ANY(dead)
