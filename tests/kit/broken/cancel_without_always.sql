-- Broken cancel: ends the steps too that run whatever happens.
-- instead of
CASE WHEN p_steps IS NULL THEN step.runs_on <> 'always' ELSE
-- this
CASE WHEN p_steps IS NULL THEN true ELSE
