-- postpone_delivery: it failed; try again in some seconds. Params: id, tries, seconds.
UPDATE /* schema */workflow_deliveries SET due_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = %(id)s AND tries = %(tries)s
