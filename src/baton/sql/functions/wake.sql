-- wake: tell other nodes, once per queue and transaction, that jobs became available; none if nobody else listens.
-- p_local: producers that the caller wakes by itself. Losing this costs a second: the stager polls.
CREATE OR REPLACE FUNCTION /* schema */baton_wake(p_queues text[], p_local uuid[], p_origin text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_queues <> '{}' THEN
    PERFORM pg_notify('/* prefix */.oban_insert', json_build_object('queue', queue, 'origin', p_origin)::text)
    FROM (SELECT DISTINCT unnest(p_queues) AS queue) AS woken
    WHERE EXISTS (SELECT FROM /* schema */oban_producers AS producer
                  WHERE producer.queue = woken.queue AND producer.uuid <> ALL(p_local))
      AND EXISTS (SELECT FROM /* schema */oban_jobs AS job WHERE job.state = 'available' AND job.queue = woken.queue);
  END IF;
END
$$;
