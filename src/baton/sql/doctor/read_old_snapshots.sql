-- read_old_snapshots: what keeps vacuum from removing rows that have been dead for many transactions. Params: transactions.
-- Returns: what, age, command that ends it. Empty when all is well.
SELECT what, age, command FROM (
  SELECT 'session ' || pid AS what, age(backend_xmin) AS age, 'SELECT pg_terminate_backend(' || pid || ')' AS command
  FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()
  UNION ALL
  SELECT 'prepared transaction ' || gid, age(transaction), 'ROLLBACK PREPARED ' || quote_literal(gid)
  FROM pg_prepared_xacts WHERE database = current_database()
  UNION ALL
  SELECT 'replication slot ' || slot_name, greatest(age(xmin), age(catalog_xmin)),
         'SELECT pg_drop_replication_slot(' || quote_literal(slot_name) || '), if its reader is gone for good'
  FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
) AS old
WHERE age > %(transactions)s ORDER BY age DESC LIMIT 20
