-- read_run: one workflow, without its steps. Params: id. At most one row.
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at
FROM /* schema */workflows WHERE id = %(id)s
