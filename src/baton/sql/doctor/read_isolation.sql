-- read_isolation: a default isolation level under which statements of Oban's fail now and then. Returns: isolation. Empty when all is well.
SELECT setting AS isolation FROM pg_settings WHERE name = 'default_transaction_isolation' AND setting <> 'read committed'
