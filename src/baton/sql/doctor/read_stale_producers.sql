-- read_stale_producers: workers whose rows are there and that give no sign of life. Params: live (seconds). Returns: node, queue, seconds.
-- Empty when all is well.
SELECT node, queue, extract(epoch FROM timezone('UTC', clock_timestamp()) - updated_at)::bigint AS seconds
FROM /* schema */oban_producers WHERE updated_at < timezone('UTC', clock_timestamp()) - make_interval(secs => %(live)s)
ORDER BY updated_at LIMIT 20
