-- find_newest_runs: the newest workflows, live or finished. Params: limit. Returns: id of each, the newest first.
SELECT workflow.id FROM /* schema */workflows AS workflow ORDER BY workflow.id DESC LIMIT %(limit)s
