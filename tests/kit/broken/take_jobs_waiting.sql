-- Broken take_jobs: waits for a job row while workflow rows are held.
-- instead of
FOR UPDATE SKIP LOCKED
-- this
FOR UPDATE
