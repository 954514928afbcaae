-- read_session: which session of the server answers, and what time it is there. One row: pid, now.
SELECT pg_backend_pid() AS pid, clock_timestamp() AS now
