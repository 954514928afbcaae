-- read_expired: live runs whose deadline has passed. Returns: id. A hundred at most; the next look finds the others.
SELECT id FROM /* schema */workflows
WHERE deadline_at <= clock_timestamp() AND finished_at IS NULL AND cancel_requested_at IS NULL ORDER BY deadline_at LIMIT 100
