-- read_replication_role: whether sessions of this role fire no triggers. Returns: setting. Empty when all is well.
SELECT setting FROM pg_settings WHERE name = 'session_replication_role' AND setting = 'replica'
