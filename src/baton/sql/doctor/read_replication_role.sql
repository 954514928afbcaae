-- read_replication_role: whether sessions of this role fire no triggers. Returns: role. Empty when all is well.
SELECT setting AS role FROM pg_settings WHERE name = 'session_replication_role' AND setting = 'replica'
