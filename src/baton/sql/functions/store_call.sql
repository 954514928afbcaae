-- store_call: keep a call's value under its key as in `store`, and write what it used as in `record`, in one commit.
-- Returns whether the attempt still holds its job. If not, nothing is stored, and what was used is written all the same.
CREATE OR REPLACE FUNCTION /* schema */baton_store_call(
  p_job_id bigint, p_attempted_at timestamp, p_key text, p_value text, p_usage jsonb
) RETURNS boolean LANGUAGE plpgsql /* pinned */ SET lock_timeout = '1s' AS $$
DECLARE
  held boolean;
BEGIN
  held := /* schema */baton_store(p_job_id, p_attempted_at, p_key, p_value);
  PERFORM /* schema */baton_record(p_usage, '[]');
  RETURN held;
END
$$;
