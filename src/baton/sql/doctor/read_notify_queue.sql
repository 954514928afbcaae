-- read_notify_queue: whether notifications pile up, because a session listens and sits in a transaction. Params: share (from 0 to 1).
-- Returns: percent, level. Empty when all is well.
SELECT round((100 * usage)::numeric, 1) AS percent, CASE WHEN usage > 0.5 THEN 'error' ELSE 'warning' END AS level
FROM (SELECT pg_notification_queue_usage() AS usage) AS queue WHERE usage > %(share)s
