-- read_cost_by_day: what calls of models came to, by day in UTC, the latest first. Params: those of spent; limit.
SELECT (stat.inserted_at AT TIME ZONE 'UTC')::date AS day,
/* totals */
FROM /* schema */workflow_step_stats AS stat
WHERE
/* spent */
GROUP BY day
ORDER BY day DESC
LIMIT %(limit)s
