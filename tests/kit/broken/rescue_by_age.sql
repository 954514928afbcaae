-- Broken rescue_dead: takes for dead who has been at one job for long, however often it is heard.
-- instead of
 AND producer.updated_at < silent.since
-- this
-- instead of
 AND producer.updated_at
        < moment - make_interval(secs => coalesce((producer.meta #>> '{baton,rescue_after}')::double precision, 60))
-- this
