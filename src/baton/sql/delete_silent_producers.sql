-- delete_silent_producers: what Oban's own clean-up does, but a producer that said how long it may be silent has twice that: first the
-- rescue finds it dead, then its row goes. Params: max_age in seconds, for those that said nothing. Returns uuid of each.
DELETE FROM /* schema */oban_producers AS producer
WHERE producer.updated_at < timezone('UTC', clock_timestamp()) - make_interval(secs => greatest(
  %(max_age)s::double precision, 2 * coalesce((producer.meta #>> '{baton,rescue_after}')::double precision, 0)))
RETURNING producer.uuid
