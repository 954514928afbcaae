-- find_changed_runs: which of these workflows are not any more as their mark, the version of their row, says, or are gone; and the
-- newest live ones that are not among them. Params: ids uuid[], marks text[], limit. Returns: id of each.
SELECT known.id
FROM unnest(%(ids)s::uuid[], %(marks)s::text[]) AS known (id, mark)
LEFT JOIN /* schema */workflows AS workflow ON workflow.id = known.id
WHERE workflow.xmin::text IS DISTINCT FROM known.mark
UNION ALL
(SELECT live.id FROM (
   SELECT workflow.id FROM /* schema */workflows AS workflow WHERE workflow.finished_at IS NULL ORDER BY workflow.id DESC LIMIT %(limit)s
 ) AS live
 EXCEPT SELECT unnest(%(ids)s::uuid[]))
