-- read_stored: what a step stored under a key.
-- Params: step_id, key. Returns: its JSON text; no row where it stored nothing.
SELECT (checkpoint.value -> 'value')::text FROM /* schema */workflow_checkpoints AS checkpoint
WHERE checkpoint.step_id = %(step_id)s AND checkpoint.key = %(key)s
