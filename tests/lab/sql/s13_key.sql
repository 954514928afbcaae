-- S13 key: two live runs with one key.
SELECT max(workflow.id::text)::uuid, NULL, count(*) || ' live runs have the key ' || workflow.key
FROM workflows AS workflow WHERE workflow.finished_at IS NULL AND workflow.key IS NOT NULL
GROUP BY workflow.key HAVING count(*) > 1
