-- tell_to_stop: tell the nodes that run these jobs to end them, in Oban's own words. Losing it costs a second: nodes look.
CREATE OR REPLACE FUNCTION /* schema */baton_tell_to_stop(p_jobs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('/* prefix */.oban_signal', json_build_object('action', 'pkill', 'queue', '*', 'ident', 'any', 'job_id', job)::text)
  FROM unnest(p_jobs) AS job;
END
$$;
