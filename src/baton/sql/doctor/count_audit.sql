-- count_audit: what the audit finds, by invariant. Returns: invariant, count, run, step and detail of one. Empty when all is well.
SELECT invariant, count(*) AS count, min(workflow_id::text) AS run, left(min(step), 100) AS step, left(min(detail), 300) AS detail
FROM (
/* audit */
) AS found
GROUP BY invariant ORDER BY invariant
