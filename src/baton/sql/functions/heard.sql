-- heard: since when heartbeats have been coming in without a pause, whichever process they came from; null when they do not.
-- A pause is half of what a process may be silent. During one the server itself may have stood still, been restarted or had its
-- clock set forward, and then the silence of a process says nothing about it.
CREATE OR REPLACE FUNCTION /* schema */baton_heard(p_moment timestamp) RETURNS timestamp LANGUAGE plpgsql AS $$
BEGIN
  RETURN (
    SELECT min((producer.meta #>> '{baton,since}')::timestamp) FROM /* schema */oban_producers AS producer
    WHERE producer.meta #>> '{baton,since}' IS NOT NULL
      AND producer.updated_at > p_moment - make_interval(secs => (producer.meta #>> '{baton,rescue_after}')::double precision / 2));
END
$$;
