-- prune_debug_logs: delete captured calls older than p_age seconds, whatever their run does, at most p_limit. Returns how many.
CREATE OR REPLACE FUNCTION /* schema */baton_prune_debug_logs(p_age double precision, p_limit integer) RETURNS bigint
LANGUAGE plpgsql /* pinned */ AS $$
DECLARE
  count bigint;
BEGIN
  DELETE FROM /* schema */workflow_debug_logs AS log WHERE log.id IN (
    SELECT old.id FROM /* schema */workflow_debug_logs AS old
    WHERE old.inserted_at < clock_timestamp() - make_interval(secs => p_age) ORDER BY old.inserted_at LIMIT p_limit FOR UPDATE SKIP LOCKED);
  GET DIAGNOSTICS count = ROW_COUNT;
  RETURN count;
END
$$;
