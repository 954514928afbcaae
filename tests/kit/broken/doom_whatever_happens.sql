-- Broken doom: ends the steps too that are there for a failure.
-- instead of
        AND step.runs_on = 'success'
-- this
