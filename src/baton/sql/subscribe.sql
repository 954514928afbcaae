-- subscribe: take or extend a lease on a topic, for as long as notifications on it are wanted. Params: topic, subscriber, seconds.
INSERT INTO /* schema */workflow_subscribers (topic, subscriber, expires_at)
VALUES (%(topic)s, %(subscriber)s, clock_timestamp() + make_interval(secs => %(seconds)s))
ON CONFLICT (topic, subscriber) DO UPDATE SET expires_at = excluded.expires_at
