-- Broken lock_jobs: trusts that the steps it knew when it began are those that there are.
-- instead of
  IF FOUND THEN
-- this
  IF false THEN
