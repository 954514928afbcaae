-- read_run: one workflow, without its steps. Params: id; name_prefix, a pattern of LIKE, or null. At most one row.
SELECT
/* run */
FROM /* schema */workflows
WHERE id = %(id)s AND (%(name_prefix)s::text IS NULL OR name LIKE %(name_prefix)s::text)
