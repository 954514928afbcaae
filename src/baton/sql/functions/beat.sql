-- beat: a process says that it lives, for each of its producers. By the server's clock, which all processes share.
-- p_producers: JSON array of {uuid, name, node, queue, meta}; a row that is gone is made again: the table is unlogged, so empty after
-- a crash of the server, and others delete rows that were silent. p_rescue_after: seconds that this process may be silent.
-- Returns the producers whose row was not there.
CREATE OR REPLACE FUNCTION /* schema */baton_beat(p_producers jsonb, p_rescue_after double precision) RETURNS uuid[]
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  moment timestamp := timezone('UTC', clock_timestamp());
  mark jsonb := jsonb_build_object('baton', jsonb_build_object(
    'rescue_after', p_rescue_after, 'since', least(/* schema */baton_heard(moment), moment)));
  restored uuid[];
BEGIN
  WITH beating AS (
    INSERT INTO /* schema */oban_producers AS producer (uuid, name, node, queue, meta, started_at, updated_at)
    SELECT given.uuid, given.name, given.node, given.queue, given.meta || mark, moment, moment
    FROM jsonb_to_recordset(p_producers) AS given (uuid uuid, name text, node text, queue text, meta jsonb)
    ORDER BY given.uuid
    ON CONFLICT (uuid) DO UPDATE
      SET updated_at = excluded.updated_at, meta = producer.meta || mark,
          -- The row of a process that nobody had heard of yet; see rescue_dead.
          name = excluded.name, node = excluded.node, queue = excluded.queue
    RETURNING producer.uuid, producer.xmax = 0 AS inserted
  )
  SELECT array_agg(beating.uuid) FILTER (WHERE beating.inserted) INTO restored FROM beating;
  RETURN coalesce(restored, '{}');
END
$$;
