-- claimant: the producer that claimed a job, by the job's `attempted_by`. Whoever left no uuid there gets one that nobody beats for.
CREATE OR REPLACE FUNCTION /* schema */baton_claimant(p_attempted_by text[]) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN p_attempted_by[2] ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN p_attempted_by[2]::uuid
              ELSE md5(coalesce(array_to_string(p_attempted_by, ' ', '?'), ''))::uuid END
$$;
