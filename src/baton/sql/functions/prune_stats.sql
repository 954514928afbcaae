-- prune_stats: delete what is recorded of calls of models older than p_age seconds, at most p_limit. That of a run which has not finished
-- stays, so that what it cost is known. Returns how many.
CREATE OR REPLACE FUNCTION /* schema */baton_prune_stats(p_age double precision, p_limit integer) RETURNS bigint
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  count bigint;
BEGIN
  DELETE FROM /* schema */workflow_step_stats AS stat WHERE stat.id IN (
    SELECT old.id FROM /* schema */workflow_step_stats AS old
    WHERE old.inserted_at < clock_timestamp() - make_interval(secs => p_age)
      AND NOT EXISTS (SELECT FROM /* schema */workflows AS workflow WHERE workflow.id = old.workflow_id AND workflow.finished_at IS NULL)
    ORDER BY old.inserted_at LIMIT p_limit FOR UPDATE OF old SKIP LOCKED);
  GET DIAGNOSTICS count = ROW_COUNT;
  RETURN count;
END
$$;
