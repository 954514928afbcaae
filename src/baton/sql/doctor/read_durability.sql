-- read_durability: settings under which a crash of the server may lose or damage what was committed. Returns: name, level. Empty when all is well.
SELECT name, CASE name WHEN 'synchronous_commit' THEN 'warning' ELSE 'error' END AS level
FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
ORDER BY name
