-- read_leaders: whether exactly one node leads, with a lease that outlives its renewal. Workers elect each 15 seconds for 30. Params: live,
-- remaining (seconds). Returns: what. Empty when all is well, and when nobody works.
WITH at_work AS (
  SELECT DISTINCT producer.name FROM /* schema */oban_producers AS producer
  WHERE producer.updated_at > timezone('UTC', clock_timestamp()) - make_interval(secs => %(live)s)
    AND producer.started_at < timezone('UTC', clock_timestamp()) - make_interval(secs => %(live)s)
), leaders AS (
  SELECT leader.name, leader.node, extract(epoch FROM leader.expires_at - timezone('UTC', clock_timestamp())) AS remaining
  FROM /* schema */oban_leaders AS leader
)
SELECT 'several nodes lead, each under a name of its own: '
       || string_agg(leader.node || ' (' || leader.name || ')', ', ' ORDER BY leader.name) AS what
FROM leaders AS leader WHERE leader.remaining > 0 HAVING count(*) > 1
UNION ALL
SELECT CASE WHEN leader.node IS NULL THEN 'no node leads'
            WHEN leader.remaining > 0 THEN 'the lease of node ' || leader.node || ' ends in ' || round(leader.remaining::numeric, 1) || ' s'
            ELSE 'the lease of node ' || leader.node || ' ended ' || round(-leader.remaining::numeric, 1) || ' s ago' END
       || CASE at_work.name WHEN 'oban' THEN '' ELSE ' (' || at_work.name || ')' END
FROM at_work LEFT JOIN leaders AS leader ON leader.name = at_work.name
WHERE coalesce(leader.remaining, 0) < %(remaining)s
