-- owe: mark the steps whose jobs could not be taken, so that the sweep makes those jobs follow.
-- p_wanted: jobs that should have been locked. p_taken: those that were.
CREATE OR REPLACE FUNCTION /* schema */baton_owe(p_wanted bigint[], p_taken bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE /* schema */workflow_nodes AS step SET owed = true
  WHERE step.job_id = ANY(ARRAY(SELECT unnest(p_wanted) EXCEPT SELECT unnest(p_taken)));
END
$$;
