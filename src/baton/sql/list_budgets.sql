-- list_budgets: shared budgets, by key. Params: key_prefix, a pattern of LIKE, or null; after, the last key of the page before, or null;
-- limit.
SELECT
/* budget */
FROM /* schema */workflow_budgets AS budget
WHERE budget.key IS NOT NULL AND (%(key_prefix)s::text IS NULL OR budget.key LIKE %(key_prefix)s::text)
  AND (%(after)s::text IS NULL OR budget.key > %(after)s::text)
ORDER BY budget.key LIMIT %(limit)s
