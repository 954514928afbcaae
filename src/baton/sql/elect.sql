-- elect: take or renew the leader's lease. A lease is known by its node and the moment of its election, so two processes of one
-- node's name are two. Params: name, node; elected_at, that of the lease held so far, or null; seconds it lasts.
-- Returns: elected_at of the lease that is now held; no row while somebody else holds it.
INSERT INTO /* schema */oban_leaders AS lease (name, node, elected_at, expires_at)
VALUES (%(name)s, %(node)s, timezone('UTC', clock_timestamp()),
        timezone('UTC', clock_timestamp()) + make_interval(secs => %(seconds)s))
ON CONFLICT (name) DO UPDATE
SET node = excluded.node, expires_at = excluded.expires_at,
    elected_at = CASE WHEN lease.node = excluded.node AND lease.elected_at = %(elected_at)s::timestamp
                      THEN lease.elected_at ELSE excluded.elected_at END
WHERE (lease.node = excluded.node AND lease.elected_at = %(elected_at)s::timestamp)
   OR lease.expires_at < timezone('UTC', clock_timestamp())
RETURNING lease.elected_at
