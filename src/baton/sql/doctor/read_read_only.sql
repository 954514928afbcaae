-- read_read_only: why nothing can be written here. Returns: reason. Empty when all is well.
SELECT 'the server is a standby' AS reason WHERE pg_is_in_recovery()
UNION ALL
SELECT 'default_transaction_read_only is on' FROM pg_settings WHERE name = 'default_transaction_read_only' AND setting = 'on'
