-- unsubscribe: give up leases, and those of others that ran out. Params: topic, subscriber.
DELETE FROM /* schema */workflow_subscribers
WHERE (topic = %(topic)s AND subscriber = %(subscriber)s) OR expires_at < clock_timestamp()
