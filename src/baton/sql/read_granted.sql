-- read_granted: roles that may call the ack besides its owner: they were granted to before. Returns: name of each.
SELECT DISTINCT role.rolname::text
FROM pg_proc AS routine CROSS JOIN LATERAL aclexplode(routine.proacl) AS given JOIN pg_roles AS role ON role.oid = given.grantee
WHERE routine.pronamespace = to_regnamespace('/* prefix */') AND routine.proname = 'baton_ack' AND given.grantee <> routine.proowner
ORDER BY 1
