-- spans: what the last attempts of a step's dependencies left for a tracer in their jobs' meta; of 128 of them at most.
-- A function, so that a claim without a tracer need not even prepare to look.
CREATE OR REPLACE FUNCTION /* schema */baton_spans(p_step bigint) RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN ARRAY(
    SELECT job.meta ->> 'span' FROM /* schema */workflow_edges AS edge
    JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
    JOIN /* schema */oban_jobs AS job ON job.id = dependency.job_id
    WHERE edge.dependent_id = p_step AND job.meta ? 'span' LIMIT 128);
END
$$;
