-- Broken retry: revives what failed, whoever runs on it.
-- instead of
  IF running IS NOT NULL THEN
-- this
  IF false THEN
