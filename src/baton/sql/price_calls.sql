-- price_calls: write what calls of models cost by other prices, where the cost is still what was read. Params: ids uuid[]; befores
-- numeric[], the costs as they were read, null where there was none; costs numeric[]; sources text[]; versions text[].
-- Returns how many were written.
WITH locked AS (
  SELECT stat.id FROM /* schema */workflow_step_stats AS stat WHERE stat.id = ANY(%(ids)s::uuid[]) ORDER BY stat.id FOR UPDATE
), written AS (
  UPDATE /* schema */workflow_step_stats AS stat
  SET cost_usd = priced.cost, price_source = priced.source, price_version = priced.version
  FROM unnest(%(ids)s::uuid[], %(befores)s::numeric[], %(costs)s::numeric[], %(sources)s::text[], %(versions)s::text[])
    AS priced (id, before, cost, source, version)
  JOIN locked USING (id)
  WHERE stat.id = priced.id AND stat.cost_usd IS NOT DISTINCT FROM priced.before
    AND stat.price_source IS DISTINCT FROM 'given'
  RETURNING stat.id
)
SELECT count(*) FROM written
